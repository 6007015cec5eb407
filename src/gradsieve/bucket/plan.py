"""The plan of a bucket: its units are cut into pieces, which are divided among the frames."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradsieve.bucket.layout import BucketLayout
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.pieces import AddUp, Dealt
from gradsieve.parameters.whole import Unit, WholeGroup

SMALLEST_PIECE = 2**14
"""Smallest number of elements of a piece. Each piece costs a section in a frame, some 36 bytes."""


class Piece(NamedTuple):
    """The elements from `start` to `stop` of the unit `number` of a bucket."""

    number: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


Part = Sequence[Piece]
"""The pieces that one frame carries, in the order of the bucket."""


class Plan:
    """The units of a bucket, and the parts of it that frames carry.

    Args:
        parts: all pieces of the bucket, as one part for each frame.
        place: the number of this rank's own part.
        of_node: whether the bucket holds the mean of a node's ranks. Each rank then makes a frame
            of its own part alone, and keeps the residual of that part for the whole node.
        prunes_sums: whether each rank adds up its own part of all frames and prunes the sum.
    """

    def __init__(
        self,
        layout: BucketLayout,
        parts: Sequence[Part],
        place: int = 0,
        *,
        of_node: bool = False,
        prunes_sums: bool = False,
    ) -> None:
        self.layout = layout
        self.units = layout.units
        self.pruned = [unit for unit in layout.units if isinstance(unit, ParameterState)]
        """The units that are pruned. They come before the whole ones in `units`."""
        self.parts = parts
        self.place = place
        self.of_node = of_node
        self.prunes_sums = prunes_sums
        self.digest = 0
        """A digest of what both sides of this step's frames must share; see `PlanCache.digest`."""
        self.own_parts = [parts[place]] if of_node else parts
        """The parts that this rank makes frames of."""
        self.pieces: list[list[Piece]] = [[] for _ in self.units]
        """The pieces of each unit in this rank's frames, in ascending order and without gaps."""
        for piece in sorted(piece for part in self.own_parts for piece in part):
            self.pieces[piece.number].append(piece)
        self._mine = {piece.number: piece for piece in parts[place]}

    def cleared(self, dtype: torch.dtype) -> list[bool]:
        """Return for each unit whether selection leaves zeros in its place in the buffer."""
        pruned = [not self.of_node and parameter.clears(dtype) for parameter in self.pruned]
        return [*pruned, *(False for _ in self.units[len(pruned) :])]

    def numels(self, place: int) -> list[int]:
        """Return the number of elements of each piece of a part."""
        return [piece.numel for piece in self.parts[place]]

    def place_residuals(self, world_size: int, add_up: AddUp) -> None:
        """Move residuals to where this plan needs them, before a selection.

        If another rank now adds up a piece, the residual of its sums returns to this rank's own
        residual. The ranks of a node divide their residuals among themselves if the plan is of a
        node, and stop doing so if it is not.

        Args:
            add_up: see `ParameterState.deal`.
        """
        for number, parameter in enumerate(self.pruned):
            mine = self._mine.get(number, NOTHING)
            parameter.own((mine.start, mine.stop) if self.prunes_sums else None, world_size)
            dealt = Dealt(mine.start, mine.stop, len(self.parts))
            parameter.deal(dealt if self.of_node else None, add_up)


NOTHING = Piece(0, 0, 0)


def undivided(units: Sequence[Unit]) -> list[Part]:
    """Return a single part that has all units as they are."""
    return [[Piece(number, 0, unit.numel) for number, unit in enumerate(units)]]


def dealt_to(units: Sequence[Unit], ranks: int) -> list[list[Piece]]:
    """Return a part for each rank, with at most one piece of each unit.

    The pieces of a parameter have the same size, up to one row. Its label alone decides which rank
    has which piece, so they stay there when DDP rebuilds its buckets.
    """
    parts: list[list[Piece]] = [[] for _ in range(ranks)]
    for number, unit in enumerate(units):
        if isinstance(unit, WholeGroup):
            parts[unit.owner].append(Piece(number, 0, unit.numel))
            continue
        first = zlib.crc32(unit.label.encode()) % ranks
        for place, (start, stop) in enumerate(cut(unit, ranks)):
            parts[(first + place) % ranks].append(Piece(number, start, stop))
    return parts


def cut(parameter: ParameterState, ranks: int) -> list[tuple[int, int]]:
    """Return at most `ranks` ranges. They hold whole rows unless a row is larger than a piece."""
    numel = parameter.numel
    count = max(1, min(ranks, numel // SMALLEST_PIECE))
    row = parameter.row if 0 < parameter.row <= numel // count else 1
    rows = numel // row
    starts = [row * (rows * place // count) for place in range(count)]
    return list(zip(starts, [*starts[1:], numel], strict=True))
