"""The frame: a checked header, then one section a parameter.

All numbers are little-endian. The header is HEADER, a table of one SECTION entry a parameter
follows, then for each parameter its indices (int32, ascending; none where the parameter travels
whole) and its values (float32). The CRC-32 covers every byte of the frame behind it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAGIC = int.from_bytes(b"GSV1", "little")
HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("crc32", "<u4"),
        ("bytes", "<u8"),
        ("layout", "<u8"),
        ("step", "<u4"),
        ("flags", "<u4"),
        ("sections", "<u4"),
    ]
)
SECTION = np.dtype([("numel", "<u4"), ("count", "<u4"), ("threshold", "<f4"), ("whole", "<u4")])
NONFINITE = 1
"""Flag: some value in the frame is NaN or infinite."""
CHECKED_FROM = 8
"""The first byte that the CRC covers: what follows the magic and the CRC itself."""


class FrameError(ValueError):
    """A frame that must not be used: the message names the field and what was found."""


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """What one rank sends of one parameter: its survivors, or all of it."""

    numel: int
    threshold: float
    values: NDArray[np.float32]
    indices: NDArray[np.int32] | None = None
    """Ascending positions of the values; None where the parameter travels whole."""

    @property
    def whole(self) -> bool:
        return self.indices is None

    @property
    def size(self) -> int:
        """Bytes of indices and values."""
        return self.values.nbytes + (0 if self.indices is None else self.indices.nbytes)


@dataclass(frozen=True, slots=True)
class Frame:
    layout: int
    """Digest of the names, shapes and strides that both sides must share; 64 bits."""
    step: int
    nonfinite: bool
    """Some value is NaN or infinite."""
    sections: tuple[Section, ...]


def encode_frame(
    sections: Sequence[Section], *, layout: int = 0, step: int = 0, nonfinite: bool = False
) -> Tensor:
    """Write a frame: a uint8 tensor on the CPU, with nothing of the sections shared."""
    start = HEADER.itemsize + len(sections) * SECTION.itemsize
    frame = np.empty(start + sum(section.size for section in sections), np.uint8)
    table = frame[HEADER.itemsize : start].view(SECTION)
    for entry, section in zip(table, sections, strict=True):
        entry["numel"] = section.numel
        entry["count"] = section.values.size
        entry["threshold"] = section.threshold
        entry["whole"] = section.whole
        if section.indices is not None:
            start = put(frame, start, section.indices, "<i4")
        start = put(frame, start, section.values, "<f4")
    header = frame[: HEADER.itemsize].view(HEADER)[0]
    header["magic"], header["bytes"], header["layout"] = MAGIC, frame.size, layout
    header["step"], header["sections"] = step % 2**32, len(sections)
    header["flags"] = NONFINITE if nonfinite else 0
    header["crc32"] = zlib.crc32(frame[CHECKED_FROM:].data)
    return torch.from_numpy(frame)


def put(frame: NDArray[np.uint8], start: int, array: NDArray[np.generic], dtype: str) -> int:
    stop = start + array.nbytes
    frame[start:stop].view(dtype)[:] = array
    return stop


def decode_frame(
    frame: Tensor,
    *,
    layout: int | None = None,
    numels: Sequence[int] | None = None,
    own: bool = False,
) -> Frame:
    """Check a frame in full, then return views into it.

    Args:
        frame: uint8, one dimension, contiguous, on the CPU.
        layout: the digest that the frame must carry; None accepts any.
        numels: elements of each parameter that the frame must be for; None accepts any.
        own: this process has just made the frame; its CRC is not computed again.

    Raises:
        FrameError: anything in it is not as it must be.
    """
    data = frame_bytes(frame)
    header = checked_header(data, layout, own=own)
    stop = HEADER.itemsize + int(header["sections"]) * SECTION.itemsize
    require(stop <= data.size, "sections", f"{header['sections']} do not fit {data.size} bytes")
    table = data[HEADER.itemsize : stop].view(SECTION)
    if numels is not None:
        found = table["numel"].tolist()
        require(found == list(numels), "numel", f"expected {list(numels)}, found {found}")
    sections = []
    for number, entry in enumerate(table):
        section, stop = read_section(data, stop, entry, number)
        sections.append(section)
    require(stop == data.size, "bytes", f"{data.size - stop} bytes follow the last section")
    return Frame(int(header["layout"]), int(header["step"]), bool(header["flags"]), tuple(sections))


def frame_bytes(frame: Tensor) -> NDArray[np.uint8]:
    if frame.dtype is not torch.uint8 or frame.dim() != 1 or frame.device.type != "cpu":
        raise FrameError(
            f"a frame is a one-dimensional uint8 tensor on the CPU, got {frame.dtype} "
            f"{list(frame.shape)} on {frame.device}"
        )
    data: NDArray[np.uint8] = frame.contiguous().numpy()
    # Compiled loops read aligned numbers only; a slice of a larger buffer may start anywhere.
    return data if data.ctypes.data % 4 == 0 else data.copy()


def checked_header(data: NDArray[np.uint8], layout: int | None, *, own: bool) -> np.void:
    require(
        data.size >= HEADER.itemsize,
        "bytes",
        f"{data.size} are fewer than a header's {HEADER.itemsize}",
    )
    header: np.void = data[: HEADER.itemsize].view(HEADER)[0]
    require(header["magic"] == MAGIC, "magic", f"{int(header['magic']):#010x} is no frame's")
    require(
        header["bytes"] == data.size,
        "bytes",
        f"the header says {header['bytes']}, there are {data.size}",
    )
    if not own:
        crc = zlib.crc32(data[CHECKED_FROM:].data)
        require(
            header["crc32"] == crc,
            "crc32",
            f"the header says {int(header['crc32']):#010x}, the bytes give {crc:#010x}",
        )
    require(header["flags"] in (0, NONFINITE), "flags", f"{header['flags']} is unknown")
    if layout is not None:
        require(
            int(header["layout"]) == layout,
            "layout",
            f"{int(header['layout']):#018x} is not this rank's {layout:#018x}: the ranks' models "
            "or settings differ",
        )
    return header


def read_section(
    data: NDArray[np.uint8], start: int, entry: np.void, number: int
) -> tuple[Section, int]:
    numel, count, whole = int(entry["numel"]), int(entry["count"]), int(entry["whole"])
    threshold = float(entry["threshold"])
    where = f"section {number}"
    require(whole in (0, 1), f"{where} whole", f"{whole} is neither 0 nor 1")
    require(threshold >= 0, f"{where} threshold", f"{threshold} is negative or NaN")
    require(numel < 2**31, f"{where} numel", f"{numel} is more than int32 indices can name")
    require(
        count == numel if whole else count <= numel,
        f"{where} count",
        f"{count} survivors of {numel} elements",
    )
    stop = start + count * (4 if whole else 8)
    require(stop <= data.size, f"{where} count", f"{count} values do not fit the frame's bytes")
    indices = None
    if not whole:
        indices = data[start : start + 4 * count].view("<i4")
        require(
            not count or (indices[0] >= 0 and indices[-1] < numel and ascending(indices)),
            f"{where} indices",
            f"not ascending within 0..{numel - 1}",
        )
        start += 4 * count
    return Section(numel, threshold, data[start:stop].view("<f4"), indices), stop


def ascending(indices: NDArray[np.int32]) -> bool:
    return bool((indices[1:] > indices[:-1]).all())


def require(holds: bool | np.bool, field: str, found: str) -> None:
    if not holds:
        raise FrameError(f"frame field {field}: {found}")


def encode(indices: Tensor, values: Tensor, numel: int, *, threshold: float = 0.0) -> Tensor:
    """The frame of one parameter's survivors.

    Args:
        indices: int32 [survivors], ascending, each in 0..numel - 1.
        values: float32 [survivors].
        numel: elements of the parameter.
        threshold: what the survivors exceeded; carried for the receiver's information.

    Returns:
        The frame, uint8 on the CPU.

    Raises:
        ValueError: the arguments do not make a frame that decodes.
    """
    positions = indices.detach().cpu().numpy()
    numbers = values.detach().cpu().numpy()
    if positions.dtype != np.int32 or numbers.dtype != np.float32:
        raise ValueError(
            f"indices must be torch.int32 and values torch.float32, got {indices.dtype} and "
            f"{values.dtype}"
        )
    if positions.shape != numbers.shape or positions.ndim != 1:
        raise ValueError(
            f"indices and values must be of one length, got {list(indices.shape)} and "
            f"{list(values.shape)}"
        )
    if positions.size and not (
        positions[0] >= 0 and positions[-1] < numel and ascending(positions)
    ):
        raise ValueError(f"indices must ascend within 0..{numel - 1}")
    nonfinite = not bool(np.isfinite(numbers).all())
    return encode_frame([Section(numel, threshold, numbers, positions)], nonfinite=nonfinite)


def decode(frame: Tensor) -> tuple[Tensor, Tensor]:
    """The survivors in a frame of one parameter: indices (int32) and values (float32).

    Raises:
        FrameError: the frame is damaged, or holds another number of parameters than one.
    """
    sections = decode_frame(frame).sections
    require(len(sections) == 1, "sections", f"{len(sections)}, where decode takes one parameter")
    section = sections[0]
    indices = section.indices
    if indices is None:
        indices = np.arange(section.numel, dtype=np.int32)
    return torch.from_numpy(indices.copy()), torch.from_numpy(section.values.copy())
