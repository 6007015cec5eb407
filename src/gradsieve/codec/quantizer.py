"""The scalar quantizer of `levels`: dead zone, step and reconstruction points.

The dead zone is the threshold t. A survivor of magnitude a has the level ⌊(a - t) / step⌋; level
0 is reconstructed at the mean of its members, the levels above at the mean offset of theirs. Only
the step is free. It is the one at which a bit buys as much wherever it is spent (the condition of
an entropy-constrained quantizer: P. Chou, T. Lookabaugh, R. Gray, Entropy-Constrained Vector
Quantization, IEEE Trans. ASSP 37(1), 1989): on finer levels, or on a lower threshold.

For magnitudes whose excess over t is exponential with mean m (a Laplace source; G. Sullivan,
Efficient Scalar Quantization of Exponential and Laplacian Random Variables, IEEE Trans. IT 42(5),
1996) and the step s in units of m, with q = e^-s:

- squared error of a survivor: D(s) = 1 - s² q / (1 - q)²
- entropy of its level in bits: R(s) = -log₂(1 - q) - q / (1 - q) · log₂ q
- so that finer levels buy -dD/dR = ln 2 · (s · coth(s / 2) - 2) a bit.

A lower threshold turns an element of magnitude t, whose error was t², into a survivor with the
error δ², δ = 1 - s q / (1 - q) being the centroid of level 0. At density p it costs
log₂((1 - p) / p) bits of position, one of sign and -log₂(1 - q) of level. The step is where the
two prices meet. As t falls to 0 it becomes 2 t, the uniform quantizer; at one survivor in a
hundred it is some six m, and almost every survivor has level 0.
"""

import math

import numpy as np

from gradsieve.codec.lanes import TILE, tile_sum
from gradsieve.runtime.compiled import compiled

SMALLEST_STEP = 1 / 16
"""In mean excesses: some 5.5 bits a level, with which the error is a thousandth of the excess."""
LARGEST_STEP = 16.0
STRIDE = 1.125
HALVINGS = 6
SMALLEST_MEAN_EXCESS, LARGEST_MAGNITUDE = 1e-30, 1e35
"""Beyond, levels might leave float32's range."""
ZERO, ONE = np.float32(0), np.float32(1)


@compiled
def price_difference(step, threshold, density):  # type: ignore[no-untyped-def]
    """What a bit of finer levels buys, times the bits of a survivor, less what it removes."""
    q = math.exp(-step)
    slope = math.log(2) * (step / math.tanh(step / 2) - 2)
    # Where most are members already, one more may shorten the positions by more than it takes.
    bits = max(math.log2((1 - density) / density) + 1 - math.log2(1 - q), 0.0)
    centroid = 1 - step * q / (1 - q)
    return slope * bits - (threshold * threshold - centroid * centroid)


@compiled
def choose_step(threshold, mean_excess, density):  # type: ignore[no-untyped-def]
    """The step for survivors that exceed `threshold` (0 or more) by `mean_excess` on average."""
    t = threshold / mean_excess
    p = min(max(density, 1e-9), 1 - 1e-9)
    step = SMALLEST_STEP
    # Near density 1 the prices cross more than once; the first crossing is the quantizer's.
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
    """Write levels, and the excess of each survivor to `lowest` or `others`, and 0 to the other.

    Survivors of level `limit` are in neither.

    Returns:
        how many have level 0 and level `limit`, and the sum of the other levels.
    """
    for i in range(values.size):
        excess = abs(values[i]) - threshold
        excess = excess if excess > ZERO else ZERO
        level = excess * inverse
        level = level if level < limit else limit
        levels[i] = np.int32(level)
        lowest[i] = excess if level < ONE else ZERO
        others[i] = excess if ONE <= level < limit else ZERO
    # Whole numbers have a sum of their own in any order.
    lowest_count = tops = level_sum = np.int32(0)
    top = np.uint16(limit)
    for i in range(values.size):
        lowest_count += np.int32(levels[i] == 0)
        tops += np.int32(levels[i] == top)
        level_sum += np.int32(levels[i])
    return lowest_count, tops, level_sum - tops * np.int32(top)


@compiled
def quantize(values, threshold, step, limit, levels):  # type: ignore[no-untyped-def]
    """Write each survivor's level, at most `limit`; returns the reconstruction points.

    values: float32 [N], finite, magnitudes of `threshold` or more; levels: uint16 [N]. The points
    are float32: that of level 0, and that which level · step is added to above. Survivors of level
    `limit` have no part in them.
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
    # The sums are rounded: their difference may leave the step by a little.
    rest = min(max(offsets / others, 0.0), step) if others else 0.5 * step
    return np.float32(threshold + first), np.float32(threshold + rest)


@compiled
def reconstruct(levels, step, first, rest, values):  # type: ignore[no-untyped-def]
    """Write the magnitudes that levels (uint16 [N]) stand for to values (float32 [N])."""
    for i in range(levels.size):
        # Two roundings on every machine: the ranks must agree to the bit.
        above = rest + step * np.float32(levels[i])
        values[i] = above if levels[i] else first
