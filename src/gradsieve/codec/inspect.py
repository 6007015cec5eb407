"""What is in a frame, part by part."""

from dataclasses import dataclass

from torch import Tensor

from gradsieve.codec.coding import Section
from gradsieve.codec.frame import ENTRY, HEADER, decode_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionReport:
    """One parameter in a frame; sizes in bytes."""

    kind: str
    numel: int
    survivors: int
    density: float
    threshold: float
    step: float
    """Of the quantizer; 0 where values are not levels."""
    block: int
    """Elements that share a count."""
    settings_bytes: int
    """The entry in the table, threshold, block and the quantizer's numbers."""
    counts_bytes: int
    """Of blocks."""
    positions_bytes: int
    signs_bytes: int
    """0 where signs are part of the values."""
    values_bytes: int
    """Levels, or values that travel as numbers."""

    @property
    def bytes(self) -> int:
        position = self.counts_bytes + self.positions_bytes
        return self.settings_bytes + position + self.signs_bytes + self.values_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReport:
    bytes: int
    header_bytes: int
    step: int
    layout: int
    nonfinite: bool
    sections: tuple[SectionReport, ...]

    @property
    def numel(self) -> int:
        return sum(section.numel for section in self.sections)

    @property
    def bits_per_parameter(self) -> float:
        return 8 * self.bytes / self.numel if self.numel else 0.0


def inspect(frame: Tensor) -> FrameReport:
    """Take a frame (uint8, on the CPU) apart; every section is decoded on the way.

    Raises:
        FrameError: the frame is damaged.
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
