"""What a frame has sections for: each pruned parameter of a bucket, and whole ones together."""

import zlib
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import Unit, WholeGroup

Place = slice | Tensor
"""Where a unit lies in a bucket's buffer: a stretch, or the places of its elements (int64)."""


class BucketLayout:
    """The units of a bucket, and where in its buffer they lie.

    Args:
        parameters: in the bucket's order.
        owners: ranks that whole parameters are dealt to. Who owns one follows from its label: it
            stays where it is when DDP puts its buckets together anew.
    """

    def __init__(self, parameters: Sequence[ParameterState], owners: int = 1) -> None:
        self.named = [(parameter.name, parameter.numel) for parameter in parameters]
        """Names and numbers of elements, in the bucket's order."""
        self.units: list[Unit] = []
        self.places: list[Place] = []
        """For each unit, in its own order."""
        starts = list(accumulate((p.numel for p in parameters), initial=0))
        whole: list[list[tuple[ParameterState, int]]] = [[] for _ in range(owners)]
        for parameter, start in zip(parameters, starts, strict=False):
            if parameter.whole:
                whole[zlib.crc32(parameter.label.encode()) % owners].append((parameter, start))
            else:
                self.units.append(parameter)
                self.places.append(slice(start, start + parameter.numel))
        for owner, owned in enumerate(whole):
            if owned:
                self.units.append(WholeGroup([parameter for parameter, _ in owned], owner))
                runs = [(start, p.numel) for p, start in owned]
                self.places.append(place_of(runs, parameters[0].device))

    def take(self, buffer: Tensor, number: int) -> Tensor:
        """A unit's elements, flat: a view of the buffer where they lie in one stretch."""
        return buffer[self.places[number]]

    def put(self, buffer: Tensor, number: int, flat: Tensor) -> None:
        """The way back of `take`, for a copy."""
        buffer[self.places[number]] = flat.to(buffer.dtype)


def place_of(runs: Sequence[tuple[int, int]], device: torch.device) -> Place:
    """
    Args:
        runs: starts and lengths.
    """
    stops = [start + numel for start, numel in runs]
    if all(stop == start for stop, (start, _) in zip(stops, runs[1:], strict=False)):
        return slice(runs[0][0], stops[-1])
    parts = [
        torch.arange(start, stop, dtype=torch.int64, device=device)
        for stop, (start, _) in zip(stops, runs, strict=True)
    ]
    return torch.cat(parts)
