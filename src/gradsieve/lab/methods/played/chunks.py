"""Tensors cut into chunks, as they are or after a discrete cosine transform of each.

B. Peng et al., DeMo: Decoupled Momentum Optimization, arXiv 2411.19870, section 3.
"""

import math

import torch
from torch import Tensor


def side_of(length: int, longest: int) -> int:
    """Return the largest divisor of `length` that is at most `longest`."""
    return max(side for side in range(1, min(length, longest) + 1) if length % side == 0)


def dct_matrix(length: int) -> Tensor:
    """Return the orthonormal DCT-II of so many elements, float32; its rows are the frequencies."""
    places = torch.arange(length, dtype=torch.float64, device="cpu")
    angles = math.pi / (2 * length) * (2 * places + 1) * places.unsqueeze(1)
    rows = torch.cos(angles) * math.sqrt(2 / length)
    rows[0] /= math.sqrt(2)
    return rows.float()


class Chunks:
    """Chunks of one tensor. A vector is cut into pieces; a tensor of more dimensions is taken as a
    matrix with a row for each output, and cut into rectangles.

    Args:
        longest: the longest side of a chunk. Sides divide the tensor's, so that none is padded.
        dct: whether to transform the chunks.
    """

    def __init__(self, shape: torch.Size, longest: int, *, dct: bool = False) -> None:
        self.shape = shape
        self.rows = shape[0] if len(shape) > 1 else 1
        self.columns = shape.numel() // self.rows
        self.high, self.wide = side_of(self.rows, longest), side_of(self.columns, longest)
        self.size = self.high * self.wide
        """The elements of a chunk."""
        self.count = shape.numel() // self.size
        self.sides = (dct_matrix(self.high), dct_matrix(self.wide)) if dct else None

    def cut(self, tensor: Tensor) -> Tensor:
        """Return the chunks, each in a row: [count, size]."""
        grid = tensor.reshape(
            self.rows // self.high, self.high, self.columns // self.wide, self.wide
        )
        chunks = grid.transpose(1, 2)
        if self.sides is not None:
            high, wide = self.sides
            chunks = high @ chunks @ wide.T
        return chunks.reshape(self.count, self.size)

    def join(self, chunks: Tensor) -> Tensor:
        """Return the tensor whose chunks these are."""
        grid = chunks.view(self.rows // self.high, self.columns // self.wide, self.high, self.wide)
        if self.sides is not None:
            high, wide = self.sides
            grid = high.T @ grid @ wide
        return grid.transpose(1, 2).reshape(self.shape)
