"""Count tensors into histograms on their own device, so that no tensor is copied to the CPU."""

import numpy as np
import torch
from torch import Tensor

from gradsieve.recording.histogram import (
    BINS,
    BINS_A_SIGN,
    MANTISSA_BITS,
    SMALLEST_EXPONENT,
    Histogram,
)
from gradsieve.runtime.arrays import FLOAT32, require_array
from gradsieve.runtime.compiled import compiled

RUN = 1024
"""Number of neighbouring elements that a sample takes together."""
ALWAYS_COUNTED = 8 * RUN
"""Number of elements of a tensor that are counted in any case."""
STRIDE = 7919
"""Step from the place of a sampled run to that of the next. It is prime, so that runs come from all
places."""
SHIFT = 23 - MANTISSA_BITS
FIRST_BIN = (SMALLEST_EXPONENT + 127) << MANTISSA_BITS
"""The first bits, without the sign, of the smallest magnitude that has a bin."""
MAGNITUDE_BITS = 0x7FFFFFFF
FIRST_NONFINITE = 0x7F800000


def histogram_of(tensor: Tensor, every: int = 1) -> Histogram:
    """Count a tensor of any shape, floating dtype and device.

    Args:
        every: count one run of neighbours in so many.
    """
    return counted(sampled(tensor, every), tensor.numel())


def sampled(tensor: Tensor, every: int) -> Tensor:
    """Return a part of a tensor, or all of it, flat and in float32.

    Tensors of the same size are sampled in the same places.
    """
    flat = tensor.detach().reshape(-1)
    numel = flat.numel()
    every = min(every, max(1, numel // ALWAYS_COUNTED))
    if every == 1:
        return flat.float().contiguous()
    runs = numel // (RUN * every)
    # Take another place each time. Otherwise a matrix with rows of that length would always show
    # the same columns.
    rows = torch.arange(runs, device=flat.device, dtype=torch.int64)
    blocks = flat[: runs * RUN * every].view(runs, every, RUN)
    return blocks[rows, rows * STRIDE % every].reshape(-1).float()


def counted(sample: Tensor, elements: int) -> Histogram:
    """Count a sample that `sampled` has taken from a tensor of so many elements.

    Raises:
        TypeError: the sample is not float32.
        ValueError: the sample is not flat.
    """
    if sample.device.type != "cpu":
        return count_on_device(sample, elements)
    numbers = sample.numpy()
    require_array("the sample", numbers, FLOAT32)
    counts = np.zeros(BINS, np.int64)
    total, square_sum, nonfinite = count(numbers, numbers.view(np.int32), counts)
    return Histogram(
        counts=counts,
        elements=elements,
        total=total,
        square_sum=square_sum,
        nonfinite=nonfinite,
    )


def count_on_device(sample: Tensor, elements: int) -> Histogram:
    """Count with torch operations, and two small copies to the CPU."""
    bits = sample.view(torch.int32)
    magnitude = bits & MAGNITUDE_BITS
    place = ((magnitude >> SHIFT) - (FIRST_BIN - 1)).clamp(0, BINS_A_SIGN)
    finite = magnitude < FIRST_NONFINITE
    bins = BINS_A_SIGN + torch.where(bits < 0, -place, place)
    counts = torch.bincount(torch.where(finite, bins, BINS), minlength=BINS + 1).cpu().numpy()
    exact = torch.where(finite, sample, 0.0).double()
    total, square_sum = torch.stack([exact.sum(), exact.square().sum()]).tolist()
    return Histogram(
        counts=counts[:BINS],
        elements=elements,
        total=total,
        square_sum=square_sum,
        nonfinite=int(counts[BINS]),
    )


@compiled
def count(values, bits, counts):  # type: ignore[no-untyped-def]
    total, square_sum, nonfinite = 0.0, 0.0, 0
    for i in range(values.size):
        magnitude = bits[i] & MAGNITUDE_BITS
        if magnitude >= FIRST_NONFINITE:
            nonfinite += 1
            continue
        place = min(max((magnitude >> SHIFT) - (FIRST_BIN - 1), 0), BINS_A_SIGN)
        counts[BINS_A_SIGN - place if bits[i] < 0 else BINS_A_SIGN + place] += 1
        value = np.float64(values[i])
        total += value
        square_sum += value * value
    return total, square_sum, nonfinite
