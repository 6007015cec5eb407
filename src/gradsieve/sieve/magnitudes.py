"""A histogram of one parameter's magnitudes, which tells how many pass a threshold."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.runtime.compiled import compiled

SAMPLE = 256 * 1024
"""The largest number of elements that are counted."""
RUN = 64
"""The number of neighbours that are counted together, since memory is read by cache lines."""
SHIFT = 17
"""The lower bits of a float32 that a bin ignores. Six bits of the mantissa are left, which makes 64
bins an octave."""
BINS = 2 ** (31 - SHIFT)
FIRST_NONFINITE = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF
GOLDEN_RATIO = 0.6180339887498949
LARGEST_INTERPOLATED = 0.25
"""The largest share of the wanted elements in a bin for which a threshold inside it is guessed."""


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """The counts of the finite magnitudes of a sample, on a logarithmic scale."""

    counts: NDArray[np.int64]
    """int64 [BINS]. Exact zeros are in the first bin."""
    phase: float
    """A number in 0 .. 1 that differs from step to step, and decides how a bin is rounded."""

    def threshold_for(self, density: float) -> float:
        """Return the threshold that the given share of magnitudes exceeds, on average over steps.

        The threshold is in one of the bins. If that bin holds few elements, they are taken to be
        spread evenly over it. If it holds many, as with a constant gradient, or at the edge that a
        falling threshold leaves in the residual, the whole bin passes in some steps and is kept in
        the others, in the proportion that gives the density on average.

        Args:
            density: the share of the sample that is to pass, 0 to 1, exact zeros included.
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
    """Return the smallest magnitude of a bin."""
    return float(np.array(number << SHIFT, np.int32).view(np.float32))


def below(magnitude: float) -> float:
    """Return the next smaller float32."""
    return float(np.nextafter(np.float32(magnitude), np.float32(0)))


def phase_of(step: int) -> float:
    """Return a number in 0 .. 1. Those of successive steps fill the interval evenly."""
    return step * GOLDEN_RATIO % 1.0


def sample_magnitudes(gradient: Tensor, residual: Tensor, step: int) -> Magnitudes:
    """Return a histogram of the magnitudes of gradient + residual, from at most SAMPLE elements.

    Args:
        gradient: float32 [numel], contiguous.
        residual: float32 [numel], contiguous, on the same device.
        step: the number of the step, which the sample moves with.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: sizes or devices differ, or a tensor is not flat and contiguous.
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
    """Require flat, contiguous float32 of the size and the device of another tensor."""
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
    """Return one run of RUN elements out of `every`, beginning with run number `first`."""
    runs = [run for run in torch.split(flat, RUN * every) if run.numel() > RUN * first]
    return torch.cat([run[RUN * first : RUN * (first + 1)] for run in runs])


def count_on_device(accumulated: Tensor) -> NDArray[np.int64]:
    """Return the counts of a float32 tensor's finite magnitudes, int64 [BINS]."""
    magnitude_bits = accumulated.contiguous().view(torch.int32) & MAGNITUDE_BITS
    bins = magnitude_bits[magnitude_bits < FIRST_NONFINITE] >> SHIFT
    counts: NDArray[np.int64] = torch.bincount(bins, minlength=BINS).cpu().numpy()
    return counts


@compiled
def count_magnitudes(gradient, residual, first, every, counts):  # type: ignore[no-untyped-def]
    """Count the finite magnitudes of gradient + residual in one run of RUN elements out of `every`.

    gradient, residual: float32 [numel]; first: the number of the first run; counts: int64 [BINS].
    """
    accumulated = np.empty(1, np.float32)
    pattern = accumulated.view(np.int32)
    for start in range(first * RUN, gradient.size, every * RUN):
        for i in range(start, min(start + RUN, gradient.size)):
            accumulated[0] = gradient[i] + residual[i]
            bits = pattern[0] & MAGNITUDE_BITS
            if bits < FIRST_NONFINITE:
                counts[bits >> SHIFT] += 1
