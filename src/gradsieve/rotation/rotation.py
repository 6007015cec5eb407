"""Rotate gradients of a matrix to coefficients, and averaged coefficients back to gradients."""

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradsieve.rotation.basis import Basis, product

SavedRotation = Mapping[str, Any]

EARLY = (1, 3, 7)
"""The steps after which the bases turn first."""
PERIOD = 10
"""The steps between later turns."""
LONGEST_SIDE = 2**14
"""The longest side that is rotated. In a longer one, such as a vocabulary, rows come and go."""


class Side:
    """One side of a matrix, in blocks of nearly equal size, each with a basis.

    A side longer than LONGEST_SIDE has no blocks. The cost of rotating an element is proportional
    to the size of a block, whatever the size of the matrix.
    """

    def __init__(self, size: int, block: int, device: torch.device) -> None:
        count = -(-size // block) if size <= LONGEST_SIDE else 0
        stops = [size * number // count for number in range(1, count + 1)]
        self.blocks = [
            (slice(start, stop), Basis(stop - start, device))
            for start, stop in zip([0, *stops], stops, strict=False)
        ]

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[tuple[slice, Basis]]:
        return iter(self.blocks)


class Rotation:
    """Orthonormal bases for the rows and the columns of a gradient G [M, N].

    The coefficients are left · G · rightᵀ. Gradients are nearly of low rank (the premise of
    PowerSGD: T. Vogels et al., NeurIPS 2019), so that few coefficients hold most of their energy.
    The bases are computed from what ranks have decoded, which is the same on all of them, so that
    they are never sent.

    Args:
        rows: M, as the parameter lies in memory.
        columns: N, as the parameter lies in memory.
        block: the largest size of a basis. Longer sides are rotated in blocks.
        device: where the parameter is.
    """

    def __init__(self, rows: int, columns: int, block: int, device: torch.device) -> None:
        self.rows, self.columns = rows, columns
        self.left, self.right = Side(rows, block, device), Side(columns, block, device)
        self.steps = 0
        self.is_due = False
        """Whether the bases are to turn after this step."""
        self._before: tuple[int, bool, list[Tensor]] | None = None
        """`steps`, `is_due` and the covariances before this step, for `undo`."""
        self.seconds = 0.0
        """The time that the rotation has taken so far, added up over threads."""
        self.fingerprint = 0
        """A CRC-32 of the bases, to compare them between ranks."""

    def coefficients(self, flat: Tensor) -> Tensor:
        """Return the coefficients of a gradient, both float32 [M · N], as a new tensor."""
        matrix = flat.view(self.rows, self.columns)
        coefficients = torch.empty_like(matrix) if self.left else matrix.clone()
        # Under autocast a backward pass would round the products.
        with self._timed(), torch.autocast(flat.device.type, enabled=False):
            for rows, basis in self.left:
                torch.mm(basis.vectors, matrix[rows], out=coefficients[rows])
            for columns, basis in self.right:
                coefficients[:, columns] = coefficients[:, columns] @ basis.vectors.T
        return coefficients.view(-1)

    def restore(self, flat: Tensor) -> None:
        """Turn coefficients into a gradient, float32 [M · N], in place.

        The same coefficients give the same bits on every CPU.
        """
        matrix = flat.view(self.rows, self.columns)
        with self._timed(), torch.autocast(flat.device.type, enabled=False):
            for columns, basis in self.right:
                matrix[:, columns] = product(matrix[:, columns], basis.vectors)
            for rows, basis in self.left:
                occupied = matrix[rows].any(dim=1).nonzero().squeeze(1)
                vectors = basis.vectors[occupied]
                matrix[rows] = product(vectors.T, matrix[rows][occupied])

    def learn(self, flat: Tensor) -> None:
        """Learn from a step's averaged coefficients, float32 [M · N], the same on all ranks."""
        matrix = flat.view(self.rows, self.columns)
        self._before = self.steps, self.is_due, [basis.covariance.clone() for basis in self.bases]
        self.steps += 1
        self.is_due = self.steps in EARLY or self.steps % PERIOD == 0
        if not bool(matrix.isfinite().all()):
            return
        with self._timed():
            for rows, basis in self.left:
                basis.learn(matrix[rows].T)
            for columns, basis in self.right:
                basis.learn(matrix[:, columns])

    def mean_squares(self) -> tuple[Tensor, Tensor] | None:
        """Return how large coefficients are expected to be, by what was learned so far.

        Returns:
            the mean squares of the rows (float32 [M]) and of the columns (float32 [N]) of the
            coefficients, each up to a factor and descending within each block, on the CPU. None if
            nothing was learned or a side is not rotated.
        """
        if not self.steps or not (self.left and self.right):
            return None
        rows, columns = (
            torch.cat([basis.mean_squares() for _, basis in side])
            for side in (self.left, self.right)
        )
        return rows.cpu(), columns.cpu()

    def undo(self) -> None:
        """Restore what `learn` has changed in this step."""
        if self._before is not None:
            self.steps, self.is_due, covariances = self._before
            for basis, covariance in zip(self.bases, covariances, strict=True):
                basis.covariance = covariance
            self._before = None

    def commit(self) -> None:
        """Finish the step: it can no longer be undone."""
        self._before = None

    def turn(self, residuals: Sequence[Tensor]) -> None:
        """Turn the bases, and with them the residuals, which are coefficients.

        Args:
            residuals: float32 [M · N] each, changed in place.
        """
        matrices = [flat.view(self.rows, self.columns) for flat in residuals]
        with self._timed():
            for rows, basis in self.left:
                if (turned := basis.turn()) is not None:
                    for matrix in matrices:
                        matrix[rows] = turned.T @ matrix[rows]
            for columns, basis in self.right:
                if (turned := basis.turn()) is not None:
                    for matrix in matrices:
                        matrix[:, columns] = matrix[:, columns] @ turned
        self.is_due = False
        self._take_fingerprint()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def _take_fingerprint(self) -> None:
        self.fingerprint = 0
        for basis in self.bases:
            self.fingerprint = zlib.crc32(basis.vectors.cpu().numpy().tobytes(), self.fingerprint)

    @property
    def bases(self) -> list[Basis]:
        """All bases, those of the rows first."""
        return [basis for side in (self.left, self.right) for _, basis in side]

    def save(self) -> SavedRotation:
        """Return what `load` restores, as copies."""
        return {
            "steps": self.steps,
            "vectors": [basis.vectors.clone() for basis in self.bases],
            # A covariance that is not finite would be cleared at the next turn.
            "covariances": [
                torch.where(basis.covariance.isfinite(), basis.covariance, 0.0)
                for basis in self.bases
            ],
        }

    def require_fit(self, name: str, saved: SavedRotation) -> None:
        """Raise ValueError if what was saved of the parameter `name` does not fit this one."""
        mine = [list(basis.vectors.shape) for basis in self.bases]
        theirs = [list(vectors.shape) for vectors in saved["vectors"]]
        if theirs != mine:
            raise ValueError(
                f"parameter {name}: the saved rotation has vectors of {theirs}, this one of "
                f"{mine}; rotation must be what it was when saving"
            )

    def load(self, saved: SavedRotation) -> None:
        """Restore a saved rotation that `require_fit` has accepted."""
        self.steps, self.is_due = saved["steps"], False
        for basis, vectors, covariance in zip(
            self.bases, saved["vectors"], saved["covariances"], strict=True
        ):
            basis.vectors.copy_(vectors.detach())
            basis.covariance.copy_(covariance.detach())
        self._take_fingerprint()


def rotation_of(parameter: Tensor, block: int) -> Rotation | None:
    """Return a rotation for a parameter, or None if it is a vector or `block` is 0.

    Args:
        parameter: a tensor that is dense in memory.
        block: the largest size of a basis.
    """
    rows, columns = matrix_of(parameter)
    if not block or min(rows, columns) < 2:
        return None
    rotation = Rotation(rows, columns, block, parameter.device)
    return rotation if rotation.bases else None


def matrix_of(parameter: Tensor) -> tuple[int, int]:
    """Return the number of rows of a parameter and their length.

    Rows run along the outermost dimension in memory whose size is not 1. The other dimensions make
    up a row. Several matrices stacked in one parameter count as one.
    """
    dimensions = [number for number, size in enumerate(parameter.shape) if size > 1]
    if not dimensions or not parameter.numel():
        return 1, parameter.numel()
    rows = parameter.shape[max(dimensions, key=parameter.stride)]
    return rows, parameter.numel() // rows
