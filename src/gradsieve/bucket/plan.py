"""Who adds what: each unit of a bucket is cut into pieces, which are dealt to the ranks."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradsieve.bucket.layout import BucketLayout
from gradsieve.parameters.parameter import AddUp, Dealt, ParameterState
from gradsieve.parameters.whole import Unit, WholeGroup

SMALLEST_PIECE = 2**14
"""Elements; each piece has a section of its own in a frame, of some 36 bytes."""


class Piece(NamedTuple):
    """The elements from `start` to `stop` of the bucket's unit `number`."""

    number: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


Part = Sequence[Piece]
"""The pieces that one frame carries, in the bucket's order."""


class Plan:
    """A bucket's units, and the parts that frames carry of it.

    Args:
        parts: the pieces of the bucket, one part for each frame.
        place: the number of this rank's own part.
        of_node: the bucket holds the mean of a node's ranks. Each rank makes a frame of its own
            part alone, and keeps the residual of that part for the node.
        prunes_sums: each rank adds up its own part of all frames, and prunes the sum.
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
        """The first units."""
        self.parts = parts
        self.place = place
        self.of_node = of_node
        self.prunes_sums = prunes_sums
        self.digest = 0
        """What both sides of this step's frames must share, as `Plans.digest` gives it."""
        self.own_parts = [parts[place]] if of_node else parts
        """The parts that this rank makes frames of."""
        self.pieces: list[list[Piece]] = [[] for _ in self.units]
        """The pieces of each unit in this rank's frames, in order; they follow each other."""
        for piece in sorted(piece for part in self.own_parts for piece in part):
            self.pieces[piece.number].append(piece)
        self._mine = {piece.number: piece for piece in parts[place]}

    def cleared(self, dtype: torch.dtype) -> list[bool]:
        """Whether selecting leaves zeros in the place of each unit, in a buffer of `dtype`."""
        pruned = [not self.of_node and parameter.clears(dtype) for parameter in self.pruned]
        return [*pruned, *(False for _ in self.units[len(pruned) :])]

    def numels(self, place: int) -> list[int]:
        """Elements of each piece of a part."""
        return [piece.numel for piece in self.parts[place]]

    def settle(self, world_size: int, add_up: AddUp) -> None:
        """Before a selection, let residuals be where this plan wants them.

        What was pruned of sums returns from pieces that another rank adds up now. The ranks of a
        node divide their residuals among themselves, or no longer do.

        Args:
            add_up: as for `ParameterState.deal`.
        """
        for number, parameter in enumerate(self.pruned):
            mine = self._mine.get(number, NOTHING)
            summed = mine if self.prunes_sums else NOTHING
            parameter.give_up_unless(summed.start, summed.stop, world_size)
            dealt = Dealt(mine.start, mine.stop, len(self.parts))
            parameter.deal(dealt if self.of_node else None, add_up)


NOTHING = Piece(0, 0, 0)


def undivided(units: Sequence[Unit]) -> list[Part]:
    """One part with all of it."""
    return [[Piece(number, 0, unit.numel) for number, unit in enumerate(units)]]


def dealt_to(units: Sequence[Unit], ranks: int) -> list[list[Piece]]:
    """A part for each rank, with one piece of a unit at most.

    A parameter's pieces are of one size, to a row; who has them depends on its label alone, so that
    they stay where they are when DDP puts its buckets together anew.
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
    """At most `ranks` ranges; of whole rows, where a row is no larger than a piece."""
    numel = parameter.numel
    count = max(1, min(ranks, numel // SMALLEST_PIECE))
    row = parameter.row if 0 < parameter.row <= numel // count else 1
    rows = numel // row
    starts = [row * (rows * place // count) for place in range(count)]
    return list(zip(starts, [*starts[1:], numel], strict=True))
