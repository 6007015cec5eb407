"""The scalar quantizer of `levels`: dead zone, step and reconstruction points.

The dead zone is the threshold t. A survivor of magnitude a has the level ⌊(a - t) / step⌋. Level 0
is reconstructed at the mean of its members. The other levels share one offset from their lower
edge, the mean over their members. That leaves the step to be chosen. It is chosen so that a bit
removes as much squared error when it is spent on finer levels as when it is spent on a lower
threshold, which is the condition of an entropy-constrained quantizer (P. Chou, T. Lookabaugh,
R. Gray, Entropy-Constrained Vector Quantization, IEEE Trans. ASSP 37(1), 1989).

Let the excess of magnitudes over t be exponential with mean m, as for a Laplace source (G.
Sullivan, Efficient Scalar Quantization of Exponential and Laplacian Random Variables, IEEE Trans.
IT 42(5), 1996), and the step be s in units of m, with q = e^-s. Then

- squared error of a survivor: D(s) = 1 - s² q / (1 - q)²
- entropy of its level in bits: R(s) = -log₂(1 - q) - q / (1 - q) · log₂ q
- squared error that a bit of finer levels removes: -dD/dR = ln 2 · (s · coth(s / 2) - 2)

A lower threshold turns an element of magnitude t, whose error was t², into a survivor with the
error δ², where δ = 1 - s q / (1 - q) is the centroid of level 0. At density p that costs
log₂((1 - p) / p) bits of position, one of sign and -log₂(1 - q) of level. The step is the one at
which both prices are equal. As t falls to 0 it approaches 2 t, a uniform quantizer. At one survivor
in a hundred it is about 6 m, and almost every survivor has level 0.
"""

import math

import numpy as np

from gradsieve.codec.lanes import TILE, tile_sum
from gradsieve.runtime.compiled import compiled

SMALLEST_STEP = 1 / 16
"""In mean excesses. A level then takes about 5.5 bits, and its error is a thousandth of the mean
excess."""
LARGEST_STEP = 16.0
STRIDE = 1.125
HALVINGS = 6
SMALLEST_MEAN_EXCESS, LARGEST_MAGNITUDE = 1e-30, 1e35
"""Beyond these, levels might leave the range of float32."""
ZERO, ONE = np.float32(0), np.float32(1)


@compiled
def price_difference(step, threshold, density):  # type: ignore[no-untyped-def]
    """Return how much more error finer levels remove than a new survivor of as many bits does.

    step and threshold are in mean excesses.
    """
    q = math.exp(-step)
    slope = math.log(2) * (step / math.tanh(step / 2) - 2)
    # Where most elements are survivors, one more may save more bits of position than it costs.
    bits = max(math.log2((1 - density) / density) + 1 - math.log2(1 - q), 0.0)
    centroid = 1 - step * q / (1 - q)
    return slope * bits - (threshold * threshold - centroid * centroid)


@compiled
def choose_step(threshold, mean_excess, density):  # type: ignore[no-untyped-def]
    """Return the step, float64, for a threshold of 0 or more.

    mean_excess: the mean of the survivors' excess over the threshold; density: the share of
    elements that are survivors.
    """
    t = threshold / mean_excess
    p = min(max(density, 1e-9), 1 - 1e-9)
    step = SMALLEST_STEP
    # Near density 1 the prices are equal at several steps. The smallest of these is right.
    while step < LARGEST_STEP and price_difference(step, t, p) < 0:
        step *= STRIDE
    low, high = max(step / STRIDE, SMALLEST_STEP), step
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if price_difference(middle, t, p) < 0:
            low = middle
        else:
            high = middle
    return min(high, LARGEST_STEP) * mean_excess


@compiled
def mean_excess_over(threshold, values):  # type: ignore[no-untyped-def]
    """Return the mean of |value| - threshold, as float64."""
    total = 0.0
    excesses = np.empty(TILE, np.float32)
    for start in range(0, values.size, TILE):
        some = values[start : start + TILE]
        for i in range(some.size):
            excesses[i] = abs(some[i]) - threshold
        total += tile_sum(excesses, some.size)
    return total / values.size


@compiled
def quantize_tile(values, threshold, inverse, limit, levels, lowest, others):  # type: ignore[no-untyped-def]
    """Quantize up to TILE survivors.

    Each one's level is written to `levels`. Its excess over the threshold is written to `lowest` if
    its level is 0, and to `others` if it is between 0 and `limit`; the other gets 0.

    Returns:
        the number of survivors of level 0, that of level `limit`, and the sum of the levels
        between.
    """
    for i in range(values.size):
        excess = abs(values[i]) - threshold
        excess = excess if excess > ZERO else ZERO
        level = excess * inverse
        level = level if level < limit else limit
        levels[i] = np.int32(level)
        lowest[i] = excess if level < ONE else ZERO
        others[i] = excess if ONE <= level < limit else ZERO
    # Sums of whole numbers are the same in any order.
    lowest_count = tops = level_sum = np.int32(0)
    top = np.uint16(limit)
    for i in range(values.size):
        lowest_count += np.int32(levels[i] == 0)
        tops += np.int32(levels[i] == top)
        level_sum += np.int32(levels[i])
    return lowest_count, tops, level_sum - tops * np.int32(top)


@compiled
def quantize(values, threshold, step, limit, levels):  # type: ignore[no-untyped-def]
    """Write each survivor's level, at most `limit`, and return the reconstruction points.

    values: float32 [N], finite, magnitudes of `threshold` or more; levels: uint16 [N].

    Returns:
        the magnitude that level 0 stands for, and what step · level is added to for other levels,
        both float32. Survivors of level `limit` do not count, since they are sent exactly.
    """
    t, inverse, top = np.float32(threshold), np.float32(1 / step), np.float32(limit)
    lowest = tops = level_sum = 0
    lowest_sum = excess_sum = 0.0
    lowest_excesses, excesses = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, values.size, TILE):
        some, places = values[start : start + TILE], levels[start : start + TILE]
        part = quantize_tile(some, t, inverse, top, places, lowest_excesses, excesses)
        lowest += part[0]
        tops += part[1]
        level_sum += part[2]
        lowest_sum += tile_sum(lowest_excesses, some.size)
        excess_sum += tile_sum(excesses, some.size)
    first = lowest_sum / lowest if lowest else 0.5 * step
    others = values.size - tops - lowest
    offsets = excess_sum - step * level_sum
    # The sums are rounded, so that the offset may be slightly outside 0 .. step.
    rest = min(max(offsets / others, 0.0), step) if others else 0.5 * step
    return np.float32(threshold + first), np.float32(threshold + rest)


@compiled
def reconstruct(levels, step, first, rest, values):  # type: ignore[no-untyped-def]
    """Write the magnitudes that levels (uint16 [N]) stand for to `values`, float32 [N]."""
    for i in range(levels.size):
        # Rounded twice, and never fused, because all ranks must arrive at the same bits.
        above = rest + step * np.float32(levels[i])
        values[i] = above if levels[i] else first
