"""Memory that ends at a page which nobody may touch, and frames decoded in it.

Compiled loops run without bounds checks: a read or write behind an array mostly goes unnoticed.
Here it ends the process.
"""

import ctypes
import mmap

import numpy as np
import torch

from gradsieve.codec import FrameError, decode_frame
from gradsieve.codec.coding import SLACK

PAGE = mmap.PAGESIZE
NO_ACCESS = 0


class Guarded:
    """`size` bytes or fewer that end where the forbidden page begins."""

    def __init__(self, size: int) -> None:
        pages = -(-size // PAGE)
        self.size = pages * PAGE
        self.memory = mmap.mmap(-1, self.size + PAGE)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        guard = ctypes.c_void_p(self.bytes.ctypes.data + self.size)
        if libc.mprotect(guard, ctypes.c_size_t(PAGE), NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")

    def last(self, size: int) -> np.ndarray:
        return self.bytes[self.size - size : self.size]


class GuardedDecoder:
    """Decodes frames that end at a forbidden page into a bucket that does."""

    def __init__(self, numels: list[int], layout: int) -> None:
        self.numels, self.layout = numels, layout
        self.frame = Guarded(2**20)
        self.bucket = Guarded(4 * sum(numels))

    def decode(self, content: bytes) -> str:
        """What became of it: "decoded", or the message of the FrameError."""
        size = len(content)
        memory = self.frame.last(size + SLACK)
        memory[:size] = np.frombuffer(content, np.uint8)
        memory[size:] = 0xFF
        frame = torch.from_numpy(memory)[:size]
        try:
            self.read_without_layout(frame)
            self.add(frame)
        except FrameError as error:
            return str(error)
        return "decoded"

    def read_without_layout(self, frame: torch.Tensor) -> None:
        for section in decode_frame(frame).sections:
            indices, values = section.survivors()
            assert indices.size == values.size == section.count
            # Nothing larger than a few times the frame is allocated.
            assert section.count <= 8 * frame.numel()
            assert indices.size == 0 or 0 <= indices[0] <= indices[-1] < section.numel
            assert (np.diff(indices) > 0).all()

    def add(self, frame: torch.Tensor) -> None:
        sections = decode_frame(frame, layout=self.layout, numels=self.numels).sections
        for section in sections:
            total = self.bucket.last(4 * section.numel).view(np.float32)
            section.add_to(total, 0.5)
