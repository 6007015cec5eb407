"""Who adds what: each unit of a bucket is cut into pieces, which are dealt to the ranks."""

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from gradsieve.bucket.layout import BucketLayout, Unit
from gradsieve.parameters.parameter import AddUp, Dealt, ParameterState
from gradsieve.parameters.whole import WholeGroup

SMALLEST_PIECE = 2**14
"""Elements; each piece has a section of its own in a frame, of some 36 bytes."""


class Piece(NamedTuple):
    """Elements `start` to `stop` of the bucket's unit `number`."""

    number: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


Part = Sequence[Piece]
"""The pieces that one frame carries, in the bucket's order."""


Way = Literal["gather", "two-shot", "hierarchical"]


class Plan:
    """A bucket's units, and the parts that frames carry of it.

    Args:
        way: "gather": one part with all of it. "two-shot": a part for each rank, which adds it up.
            "hierarchical": a part for each rank of a node, which carries it to the other nodes.
        place: of this rank among them.
    """

    def __init__(self, way: Way, layout: BucketLayout, parts: Sequence[Part], place: int) -> None:
        self.way = way
        self.layout = layout
        self.units = layout.units
        self.pruned = [unit for unit in layout.units if isinstance(unit, ParameterState)]
        """The first units."""
        self.parts = parts
        self.place = place
        self.own_parts = [parts[place]] if way == "hierarchical" else parts
        """The parts that this rank makes frames of."""
        self.pieces: list[list[Piece]] = [[] for _ in self.units]
        """For each unit its pieces in this rank's frames, in order; they follow each other."""
        for piece in sorted(piece for part in self.own_parts for piece in part):
            self.pieces[piece.number].append(piece)
        self._mine = {piece.number: piece for piece in parts[place]}

    @property
    def takes_all(self) -> bool:
        """Nothing of the bucket stays out of this rank's frames."""
        return self.way != "hierarchical"

    def cleared(self, dtype: torch.dtype) -> list[bool]:
        """Which units selecting leaves zeros of, in a buffer of `dtype`."""
        pruned = [self.takes_all and parameter.clears(dtype) for parameter in self.pruned]
        return [*pruned, *(False for _ in self.units[len(pruned) :])]

    def numels(self, place: int) -> list[int]:
        """Of the pieces of a part."""
        return [piece.numel for piece in self.parts[place]]

    def settle_sums(self, ranks: int) -> None:
        """Before a selection: take back what was pruned of sums that are another rank's by now."""
        for number, parameter in enumerate(self.pruned):
            piece = self._piece_of(number) if self.way == "two-shot" else NOTHING
            parameter.give_up_unless(piece.start, piece.stop, ranks)

    def deal(self, add_up: AddUp) -> None:
        """Before a selection: who keeps which residual; `add_up` as for `ParameterState.deal`."""
        for number, parameter in enumerate(self.pruned):
            piece = self._piece_of(number)
            dealt = Dealt(piece.start, piece.stop, len(self.parts))
            parameter.deal(dealt if self.way == "hierarchical" else None, add_up)

    def _piece_of(self, number: int) -> Piece:
        return self._mine.get(number, NOTHING)


NOTHING = Piece(0, 0, 0)


def plan_for(way: Way, layout: BucketLayout, place: int, places: int) -> Plan:
    """
    Args:
        place, places: of this rank among as many as there are parts to be.
    """
    if way == "gather" or (way == "two-shot" and places == 1):
        return Plan("gather", layout, undivided(layout.units), 0)
    return Plan(way, layout, dealt_to(layout.units, places), place)


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
