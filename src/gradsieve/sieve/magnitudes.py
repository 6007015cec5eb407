"""A histogram of the magnitudes of one parameter: which threshold would let how many pass."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.runtime.compiled import compiled

SAMPLE = 256 * 1024
"""Elements that are looked at, at most."""
RUN = 64
"""Neighbouring elements of a sample: a cache line costs the same for one as for sixteen."""
SHIFT = 17
"""A bin is the exponent and the first six bits of the mantissa: 64 bins an octave."""
BINS = 2 ** (31 - SHIFT)
FIRST_NONFINITE = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF
GOLDEN_RATIO = 0.6180339887498949
LARGEST_INTERPOLATED = 0.25
"""Share of the wanted elements that a bin may hold for a place inside it to be guessed."""


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """Counts of the finite magnitudes of a sample, on a logarithmic scale."""

    counts: NDArray[np.int64]
    """[BINS]; exact zeros are in the first."""
    phase: float
    """A number in 0..1 that differs from step to step: what a bin is rounded up or down by."""

    def threshold_for(self, density: float) -> float:
        """The threshold that this share of the sample's magnitudes exceeds, on average over steps.

        The wanted element lies in some bin. A bin that holds few is divided evenly. One that holds
        many (a constant gradient, the edge that a fallen threshold leaves in the residual) passes
        whole in some steps and stays whole in the others, in the proportion that keeps the average.
        """
        filled = np.flatnonzero(self.counts)
        if not filled.size or filled[-1] == 0:
            return 0.0
        from_here_up = np.cumsum(self.counts[filled][::-1])[::-1]
        wanted = density * float(from_here_up[0])
        position = int(np.flatnonzero(from_here_up >= wanted)[-1])
        inside = float(self.counts[filled[position]])
        share = (wanted - (float(from_here_up[position]) - inside)) / inside
        lower, upper = bin_edge(int(filled[position])), bin_edge(int(filled[position]) + 1)
        if inside <= LARGEST_INTERPOLATED * wanted:
            return upper - share * (upper - lower)
        return below(lower) if share > self.phase else upper


def bin_edge(number: int) -> float:
    """The smallest magnitude of a bin."""
    return float(np.array(number << SHIFT, np.int32).view(np.float32))


def below(magnitude: float) -> float:
    return float(np.nextafter(np.float32(magnitude), np.float32(0)))


def phase_of(step: int) -> float:
    """Numbers in 0..1 that fill the interval evenly from any step on."""
    return step * GOLDEN_RATIO % 1.0


def sample_magnitudes(gradient: Tensor, residual: Tensor, step: int) -> Magnitudes:
    """Histogram of the accumulated gradient from at most SAMPLE elements.

    gradient, residual: flat float32 tensors of one device. The sample moves with the step.

    Raises:
        TypeError: tensors of another dtype.
        ValueError: sizes or devices that differ, or strides.
    """
    require_flat("the gradient", gradient, gradient)
    require_flat("the residual", residual, gradient)
    phase = phase_of(step)
    every = -(-gradient.numel() // SAMPLE)
    first = int(phase * every)
    if gradient.device.type == "cpu":
        counts = np.zeros(BINS, np.int64)
        flat, left = gradient.detach().numpy(), residual.detach().numpy()
        count_magnitudes(flat, left, first, every, counts)
        return Magnitudes(counts, phase)
    accumulated = every_nth_run(gradient, first, every) + every_nth_run(residual, first, every)
    return Magnitudes(count_on_device(accumulated), phase)


def require_flat(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.dtype is not torch.float32:
        raise TypeError(f"{name} must be torch.float32, got {tensor.dtype}")
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be flat and contiguous, got {list(tensor.shape)} with strides of "
            f"{list(tensor.stride())}"
        )
    if tensor.numel() != like.numel() or tensor.device != like.device:
        raise ValueError(
            f"{name} has {tensor.numel()} elements on {tensor.device}, the gradient "
            f"{like.numel()} on {like.device}"
        )


def every_nth_run(flat: Tensor, first: int, every: int) -> Tensor:
    runs = [run for run in torch.split(flat, RUN * every) if run.numel() > RUN * first]
    return torch.cat([run[RUN * first : RUN * (first + 1)] for run in runs])


def count_on_device(accumulated: Tensor) -> NDArray[np.int64]:
    magnitude_bits = accumulated.contiguous().view(torch.int32) & MAGNITUDE_BITS
    bins = magnitude_bits[magnitude_bits < FIRST_NONFINITE] >> SHIFT
    counts: NDArray[np.int64] = torch.bincount(bins, minlength=BINS).cpu().numpy()
    return counts


@compiled
def count_magnitudes(gradient, residual, first, every, counts):  # type: ignore[no-untyped-def]
    accumulated = np.empty(1, np.float32)
    pattern = accumulated.view(np.int32)
    for start in range(first * RUN, gradient.size, every * RUN):
        for i in range(start, min(start + RUN, gradient.size)):
            accumulated[0] = gradient[i] + residual[i]
            bits = pattern[0] & MAGNITUDE_BITS
            if bits < FIRST_NONFINITE:
                counts[bits >> SHIFT] += 1
