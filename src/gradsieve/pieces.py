"""Who adds what: each parameter of a bucket is cut into pieces, which are dealt to the ranks."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from gradsieve.parameters import ParameterState

SMALLEST_PIECE = 2**14
"""Elements; each piece has a section of its own in a frame, of some 36 bytes."""


class Piece(NamedTuple):
    """Elements `start` to `stop` of the bucket's parameter `number`."""

    number: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


Part = Sequence[Piece]
"""The pieces that one frame carries, in the bucket's order."""


class Plan:
    """A bucket's parameters, and the parts that its frames carry."""

    def __init__(self, parameters: Sequence[ParameterState], parts: Sequence[Part]) -> None:
        self.parameters = parameters
        self.parts = parts
        self.pieces: list[list[Piece]] = [[] for _ in parameters]
        """Of each parameter, in order."""
        for piece in sorted(piece for part in parts for piece in part):
            self.pieces[piece.number].append(piece)

    @property
    def is_dealt(self) -> bool:
        """Each rank has a part of its own."""
        return len(self.parts) > 1

    def numels(self, place: int) -> list[int]:
        """Of the pieces of a part."""
        return [piece.numel for piece in self.parts[place]]

    def let_own(self, rank: int, ranks: int) -> None:
        """Before a selection: what the rank has pruned of sums that are another's by now."""
        mine = {piece.number: piece for piece in self.parts[rank]} if self.is_dealt else {}
        for number, parameter in enumerate(self.parameters):
            piece = mine.get(number, Piece(number, 0, 0))
            parameter.own(piece.start, piece.stop, ranks)


def plan_for(parameters: Sequence[ParameterState], ranks: int, *, two_shot: bool) -> Plan:
    return dealt(parameters, ranks) if two_shot and ranks > 1 else undivided(parameters)


def undivided(parameters: Sequence[ParameterState]) -> Plan:
    """One part with all of it."""
    whole = [Piece(number, 0, parameter.numel) for number, parameter in enumerate(parameters)]
    return Plan(parameters, [whole])


def dealt(parameters: Sequence[ParameterState], ranks: int) -> Plan:
    """A part for each rank, with one piece of a parameter at most.

    A parameter's pieces are of one size, to a row; who has them depends on its name alone, so that
    they stay where they are when DDP puts its buckets together anew.
    """
    parts: list[list[Piece]] = [[] for _ in range(ranks)]
    for number, parameter in enumerate(parameters):
        first = zlib.crc32(parameter.name.encode()) % ranks
        for place, (start, stop) in enumerate(cut(parameter, ranks)):
            parts[(first + place) % ranks].append(Piece(number, start, stop))
    return Plan(parameters, parts)


def cut(parameter: ParameterState, ranks: int) -> list[tuple[int, int]]:
    """At most `ranks` ranges; of whole rows, where a row is no larger than a piece."""
    numel = parameter.numel
    count = 1 if parameter.whole else max(1, min(ranks, numel // SMALLEST_PIECE))
    row = parameter.row if 0 < parameter.row <= numel // count else 1
    rows = numel // row
    starts = [row * (rows * place // count) for place in range(count)]
    return list(zip(starts, [*starts[1:], numel], strict=True))
