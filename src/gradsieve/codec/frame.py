"""A frame: a header, a table of sections, and their payloads. See docs/wire-format.md."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.codec.coding import SLACK, Section
from gradsieve.codec.codings import CODINGS
from gradsieve.codec.errors import FrameError, refuse

MAGIC = b"GSVF"
VERSION = 3
HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("crc32", "<u4"),
        ("version", "u1"),
        ("flags", "u1"),
        ("sections", "<u2"),
        ("step", "<u4"),
        ("layout", "<u8"),
        ("bytes", "<u8"),
    ]
)


class Header(NamedTuple):
    """The fields of HEADER."""

    magic: bytes
    crc32: int
    version: int
    flags: int
    sections: int
    step: int
    layout: int
    bytes: int


ENTRY = np.dtype(
    [
        ("numel", "<u4"),
        ("count", "<u4"),
        ("bytes", "<u4"),
        ("kind", "u1"),
        ("low_bits", "u1"),
        ("planes", "u1"),
        ("zero", "u1"),
    ]
)
"""The entry of a section in the table."""
NONFINITE = 1
"""The flag that is set where some value in the frame is NaN or infinite."""
CHECKED_FROM = 8
"""The first byte that the CRC covers, behind the magic and the CRC itself."""
MOST_SECTIONS = 2**16 - 1
MOST_PAYLOAD = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose header and table have been checked."""

    layout: int
    """A digest of the names, shapes and settings that both sides must share, 64 bits."""
    step: int
    """The optimizer's step, modulo 2^32."""
    nonfinite: bool
    """Whether some value is NaN or infinite."""
    sections: tuple[Section, ...]


def encode_frame(
    sections: Sequence[Section], *, layout: int = 0, step: int = 0, nonfinite: bool = False
) -> Tensor:
    """Write sections into a frame, uint8 [bytes] on the CPU, in memory of its own.

    Args:
        sections: one for each parameter, in the bucket's order.
        layout: the digest that the receiver's must equal, 0 .. 2^64 - 1.
        step: the optimizer's step.
        nonfinite: whether some value is NaN or infinite.

    Raises:
        ValueError: there are more sections than the format has room for, or a section has more
            bytes.
    """
    if len(sections) > MOST_SECTIONS:
        raise ValueError(f"a frame holds {MOST_SECTIONS} parameters at most, got {len(sections)}")
    sizes = [section.payload.size for section in sections]
    largest = max(sizes, default=0)
    if largest > MOST_PAYLOAD:
        raise ValueError(
            f"parameter {sizes.index(largest)} of the bucket takes {largest} bytes, more than "
            f"{MOST_PAYLOAD}; split the parameter"
        )
    start = HEADER.itemsize + len(sections) * ENTRY.itemsize
    size = start + sum(sizes)
    frame = np.empty(size + SLACK, np.uint8)
    frame[size:] = 0
    frame[HEADER.itemsize : start].view(ENTRY)[:] = [
        (s.numel, s.count, s.payload.size, s.coding.kind, s.low_bits, s.planes, 0) for s in sections
    ]
    for section in sections:
        stop = start + section.payload.size
        frame[start:stop] = section.payload
        start = stop
    header = frame[: HEADER.itemsize].view(HEADER)
    flags = NONFINITE if nonfinite else 0
    header[0] = (MAGIC, 0, VERSION, flags, len(sections), step % 2**32, layout, size)
    header["crc32"] = zlib.crc32(frame[CHECKED_FROM:size].data)
    return torch.from_numpy(frame)[:size]


def decode_frame(
    frame: Tensor,
    *,
    layout: int | None = None,
    numels: Sequence[int] | None = None,
    own: bool = False,
) -> Frame:
    """Check a frame's header, table and settings, and return its sections as views into it.

    The rest of the payloads is checked when it is read, by `Section.add_to` and
    `Section.survivors`.

    Args:
        frame: uint8 [bytes] on the CPU.
        layout: the digest that the frame must carry, or None to accept any.
        numels: the number of elements of each parameter, or None to accept any.
        own: whether this process has made the frame, so that its CRC need not be checked.

    Raises:
        FrameError: the frame is damaged, or made for other parameters.
        TypeError: `frame` is no tensor.
    """
    data = frame_bytes(frame)
    header = checked_header(data, layout, own=own)
    start = HEADER.itemsize + header.sections * ENTRY.itemsize
    if start > data.size:
        refuse("sections", f"{header.sections} do not fit {data.size} bytes")
    table = data[HEADER.itemsize : start].view(ENTRY)
    if numels is not None:
        found = table["numel"].tolist()
        if found != list(numels):
            refuse("numel", f"expected {list(numels)}, found {found}")
    sections = []
    for number, entry in enumerate(table.tolist()):
        numel, count, size, kind, low_bits, planes, zero = entry
        name = f"section {number}"
        coding = CODINGS.get(kind)
        if coding is None:
            refuse(f"{name} kind", f"{kind} is unknown")
        if zero:
            refuse(f"{name} zero", f"{zero}")
        stop = start + size
        if stop > data.size:
            refuse(f"{name} bytes", f"{size} go beyond the frame's end")
        section = Section(numel, count, coding, data[start:stop], low_bits, planes)
        coding.check(section, name)
        sections.append(section)
        start = stop
    if start != data.size:
        refuse("bytes", f"{data.size - start} follow the last section")
    return Frame(header.layout, header.step, header.flags == NONFINITE, tuple(sections))


def frame_bytes(frame: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a frame with SLACK bytes behind them, copied if there are none."""
    if not isinstance(frame, Tensor):
        raise TypeError(
            f"a frame is a torch.Tensor of uint8, got {type(frame).__name__}; of bytes "
            "torch.frombuffer(bytearray(data), dtype=torch.uint8) makes one"
        )
    plain = frame.layout is torch.strided and frame.dim() == 1 and frame.device.type == "cpu"
    if frame.dtype is not torch.uint8 or not plain:
        raise FrameError(
            f"a frame is a dense, one-dimensional uint8 tensor on the CPU, got {frame.dtype} "
            f"{list(frame.shape)} on {frame.device}"
        )
    behind = frame.untyped_storage().nbytes() - frame.storage_offset() - frame.numel()
    if frame.is_contiguous() and behind >= SLACK:
        data: NDArray[np.uint8] = frame.numpy()
        return data
    padded = torch.zeros(frame.numel() + SLACK, dtype=torch.uint8, device="cpu")[: frame.numel()]
    copied: NDArray[np.uint8] = padded.copy_(frame).numpy()
    return copied


def checked_header(data: NDArray[np.uint8], layout: int | None, *, own: bool) -> Header:
    """Return the header, or raise FrameError where it does not fit the bytes or the receiver."""
    size = data.size
    least = HEADER.itemsize
    if size < least:
        refuse("bytes", f"{size} are fewer than a header's {least}")
    header = Header(*data[:least].view(HEADER)[0].item())
    if header.magic != MAGIC:
        refuse("magic", f"{header.magic!r} is no frame's")
    if header.version != VERSION:
        refuse("version", f"{header.version}; this gradsieve reads {VERSION}")
    if header.bytes != size:
        refuse("bytes", f"{header.bytes} in the header, {size} there")
    if not own:
        crc = zlib.crc32(data[CHECKED_FROM:].data)
        if header.crc32 != crc:
            refuse("crc32", f"{header.crc32:#010x} in the header, the bytes give {crc:#010x}")
    if header.flags not in (0, NONFINITE):
        refuse("flags", f"{header.flags} are unknown")
    if layout is not None and header.layout != layout:
        refuse(
            "layout",
            f"{header.layout:#018x} is not this rank's {layout:#018x}: the ranks' models or "
            "settings differ",
        )
    return header
