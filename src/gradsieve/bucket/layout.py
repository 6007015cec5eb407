"""The units of a bucket, each of which travels in sections of its own.

A unit is one pruned parameter, or a group of parameters that travel whole.
"""

import zlib
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import Unit, WholeGroup

Place = slice | Tensor
"""Where a unit lies in the buffer of a bucket: a slice, or the index of each element (int64)."""


class BucketLayout:
    """The units of a bucket, and where they lie in its buffer.

    Args:
        parameters: the parameters, in the order of the bucket.
        owners: the number of ranks among which the whole parameters are divided. The label of a
            parameter decides who owns it, so it keeps its owner when DDP rebuilds its buckets.
    """

    def __init__(self, parameters: Sequence[ParameterState], owners: int = 1) -> None:
        self.named = [(parameter.name, parameter.numel) for parameter in parameters]
        """The name and the number of elements of each parameter, in the order of the bucket."""
        self.units: list[Unit] = []
        self.places: list[Place] = []
        """The place of each unit."""
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
        """Return the elements of a unit, flat: a view where its place is a slice, else a copy."""
        return buffer[self.places[number]]

    def put(self, buffer: Tensor, number: int, flat: Tensor) -> None:
        """Write the elements of a unit into the buffer."""
        buffer[self.places[number]] = flat.to(buffer.dtype)


def place_of(runs: Sequence[tuple[int, int]], device: torch.device) -> Place:
    """Return the place of a unit that consists of some runs of elements.

    Args:
        runs: the start and the length of each.
    """
    stops = [start + numel for start, numel in runs]
    if all(stop == start for stop, (start, _) in zip(stops, runs[1:], strict=False)):
        return slice(runs[0][0], stops[-1])
    parts = [
        torch.arange(start, stop, dtype=torch.int64, device=device)
        for stop, (start, _) in zip(stops, runs, strict=True)
    ]
    return torch.cat(parts)
