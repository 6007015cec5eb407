"""The size of each part of a frame."""

from dataclasses import dataclass

from torch import Tensor

from gradsieve.codec.coding import Section
from gradsieve.codec.frame import ENTRY, HEADER, decode_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionReport:
    """One parameter in a frame. Sizes are in bytes."""

    kind: str
    """The name of the coding, such as "levels" or "whole bfloat16"."""
    numel: int
    """The number of elements of the parameter."""
    survivors: int
    """The number of elements that were sent."""
    density: float
    """The share of elements that were sent, 0 to 1."""
    threshold: float
    """The threshold that survivors have passed, or 0 where the parameter travels whole."""
    step: float
    """The step of the quantizer, or 0 where there is none."""
    block: int
    """The number of elements that share a count of survivors."""
    settings_bytes: int
    """The size of the entry in the table, and of the settings at the start of the payload."""
    counts_bytes: int
    """The size of the counts of the blocks."""
    positions_bytes: int
    """The size of the survivors' positions."""
    signs_bytes: int
    """The size of the signs, or 0 where they are part of the values."""
    values_bytes: int
    """The size of the values: levels without their signs, or numbers."""

    @property
    def bytes(self) -> int:
        """The size of all parts together."""
        position = self.counts_bytes + self.positions_bytes
        return self.settings_bytes + position + self.signs_bytes + self.values_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReport:
    """A frame, taken apart. Sizes are in bytes."""

    bytes: int
    """The size of the whole frame."""
    header_bytes: int
    step: int
    """The optimizer's step, modulo 2^32; 0 from `encode`."""
    layout: int
    """The digest of what the ranks must share; 0 from `encode`."""
    nonfinite: bool
    """Whether some value is NaN or infinite."""
    sections: tuple[SectionReport, ...]
    """A report for each parameter, in the frame's order."""

    @property
    def numel(self) -> int:
        """The number of elements of all parameters."""
        return sum(section.numel for section in self.sections)

    @property
    def bits_per_parameter(self) -> float:
        """The size of the frame in bits for each element, sent or not."""
        return 8 * self.bytes / self.numel if self.numel else 0.0


def inspect(frame: Tensor) -> FrameReport:
    """Return the size of each part of a frame.

    Every section is decoded, so that a damaged frame raises.

    Args:
        frame: uint8 [bytes] on the CPU, from `encode` or from training.

    Raises:
        FrameError: the frame is damaged.
        TypeError: `frame` is no tensor.

    Example:
        >>> import torch
        >>> import gradsieve as gs
        >>> indices = torch.tensor([2, 5], dtype=torch.int32)
        >>> report = gs.inspect(gs.encode(indices, torch.tensor([1.5, -2.0]), 8, mode="float32"))
        >>> report.bytes, report.numel, report.sections[0].kind, report.sections[0].values_bytes
        (66, 8, 'float32', 8)
    """
    decoded = decode_frame(frame)
    return FrameReport(
        bytes=frame.numel(),
        header_bytes=HEADER.itemsize,
        step=decoded.step,
        layout=decoded.layout,
        nonfinite=decoded.nonfinite,
        sections=tuple(
            inspect_section(section, f"section {number}")
            for number, section in enumerate(decoded.sections)
        ),
    )


def inspect_section(section: Section, name: str = "section") -> SectionReport:
    """Take one section apart.

    Raises:
        FrameError: the payload is damaged; the message begins with `name`.
    """
    section.survivors(name)
    sizes = section.coding.payload_bytes(section, name)
    return SectionReport(
        kind=section.kind.name.lower().replace("_", " "),
        numel=section.numel,
        survivors=section.count,
        density=section.count / section.numel if section.numel else 0.0,
        threshold=section.threshold,
        step=section.step,
        block=section.block,
        settings_bytes=ENTRY.itemsize + sizes.settings,
        counts_bytes=sizes.counts,
        positions_bytes=sizes.positions,
        signs_bytes=sizes.signs,
        values_bytes=sizes.values,
    )
