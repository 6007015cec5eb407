"""Decode the frames of all ranks and write their average into the bucket."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.bucket.layout import Place
from gradsieve.bucket.plan import Part, Piece
from gradsieve.codec import Frame, Section
from gradsieve.rotation import Rotation
from gradsieve.runtime.threads import shared


class Contribution(NamedTuple):
    """A frame, the pieces that it carries, and the factor of their values in the average."""

    frame: Frame
    part: Part
    factor: float


def average_into(
    buffer: Tensor,
    contributions: Sequence[Contribution],
    rotations: Sequence[Rotation | None],
    threads: int = 1,
    cleared: Sequence[bool] | None = None,
    places: Sequence[Place] | None = None,
    scale: float = 1.0,
) -> None:
    """Replace the content of `buffer` by the weighted sum of the contributions, in their order.

    A unit with a rotation learns from the average and restores the gradient. One thread adds up
    the whole of a unit, so the result does not depend on the number of threads.

    Args:
        buffer: the flat buffer of the bucket, on any device.
        rotations: the rotation of each unit of the bucket; None for a unit without one.
        cleared: whether a float32 `buffer` already holds zeros in the place of each unit.
        places: where each unit lies in the buffer; None if they follow one another.
        scale: a factor for the sum, applied at the end.

    Raises:
        FrameError: a payload is damaged. The content of the buffer is then undefined.
    """
    total = (
        buffer if buffer.dtype is torch.float32 else torch.empty_like(buffer, dtype=torch.float32)
    )
    added: list[list[tuple[Piece, Section, float]]] = [[] for _ in rotations]
    for frame, part, factor in contributions:
        for piece, section in zip(part, frame.sections, strict=True):
            added[piece.number].append((piece, section, factor))
    numels = [max(piece.stop for piece, _, _ in pieces) for pieces in added]
    if places is None:
        stops = list(accumulate(numels))
        places = [slice(stop - numel, stop) for numel, stop in zip(numels, stops, strict=True)]

    def average(number: int) -> None:
        unit = total[places[number]]
        if total is not buffer or cleared is None or not cleared[number]:
            unit.zero_()
        for piece, section, factor in added[number]:
            add_section(unit[piece.start : piece.stop], section, factor, f"section {number}")
        if (rotation := rotations[number]) is not None:
            rotation.learn(unit)
            rotation.restore(unit)
        if scale != 1:
            unit.mul_(scale)
        if isinstance(places[number], Tensor):
            # Indexing with a tensor has made a copy.
            total[places[number]] = unit

    shared(average, len(numels), threads if total.is_cpu else 1)
    if total is not buffer:
        buffer.copy_(total)


def add_section(total: Tensor, section: Section, factor: float, name: str) -> None:
    if total.is_cpu:
        section.add_to(total.numpy(), factor, name)
        return
    add_on_device(total, *section.survivors(name), factor)


def add_on_device(
    total: Tensor, indices: NDArray[np.int32], values: NDArray[np.float32], factor: float
) -> None:
    """Do what `Section.add_to` does, with the same bits, on any device."""
    added = torch.from_numpy(values).to(total.device)
    # Multiply first: the `alpha` of `index_add_` may round once where the CPU rounds twice.
    total.index_add_(0, torch.from_numpy(indices).to(total.device), added * factor)
