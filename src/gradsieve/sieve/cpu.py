"""The sieve on the CPU: the kernel over chunks of a parameter, one a thread."""

import numpy as np
import torch
from numpy.typing import NDArray

from gradsieve.runtime.arrays import FLOAT32, require_array, require_target
from gradsieve.runtime.threads import shared
from gradsieve.sieve.kernel import ROW_BYTES, UNIT, measure_blocks, sieve_blocks
from gradsieve.sieve.moments import Moments
from gradsieve.sieve.tile import BLOCK, CLEAR, LARGEST, PADDING, STREAM, STREAM_ALIGNMENT, TOTALS
from gradsieve.sieve.workspace import Workspace

Floats = NDArray[np.float32]

SMALLEST_CHUNK = 256 * 1024
"""Elements below which handing a chunk to another thread costs more than it saves."""
STREAMED_FROM = 4 * 1024 * 1024
"""Elements from which a new residual elsewhere is written past the caches, which it would not fit:
else each line is read before it is written (1.4 to 1.5 instead of 1.0 G elements/s on one core)."""
SMALLEST_SQUARE_SUM = 1e-25
"""Below, the squares of a tile may have vanished in float32: they are summed again in float64."""


def sieve_on_cpu(
    gradient: Floats,
    residual: Floats,
    into: Floats,
    threshold: float,
    out: Workspace,
    *,
    clear: bool,
) -> tuple[NDArray[np.int32], Floats, Moments]:
    """Sieve flat float32 arrays; the survivors lie in `out`.

    The new residual goes to `into`: `residual` itself, or an array that does not overlap it.
    """
    numel = gradient.size
    require_gradient = require_target if clear else require_array
    require_gradient("the gradient", gradient, FLOAT32)
    require_array("the residual", residual, FLOAT32, numel)
    require_target("what gets the residual", into, FLOAT32, numel)
    bounds = chunk_bounds(numel, torch.get_num_threads())
    indices, values = out.free(numel + len(bounds) * PADDING)
    totals = totals_for(numel)
    way = (CLEAR if clear else 0) | (STREAM if streams(residual, into) else 0)
    one_pass = Pass(gradient, residual, into, np.float32(threshold), indices, values, totals, way)

    def sieve(chunk: int) -> int:
        start, stop = bounds[chunk]
        return one_pass.sieve(start, stop, start + chunk * PADDING)

    counts = shared(sieve, len(bounds), len(bounds))
    survivors = close_gaps(indices, values, bounds, counts)
    out.keep(survivors)
    indices, values = indices[:survivors], values[:survivors]
    moments = moments_from(totals, numel, survivors)
    if vanished_or_overflowed(moments):
        moments = exact_moments(values, into, moments.nonfinite, moments.gradient_square_sum)
    return indices, values, moments


def measure_on_cpu(gradient: Floats, residual: Floats | None) -> Moments:
    numel = gradient.size
    require_array("the gradient", gradient, FLOAT32)
    if residual is not None:
        require_array("the residual", residual, FLOAT32, numel)
    totals = totals_for(numel)
    whole = numel // BLOCK * BLOCK
    if whole:
        measure_blocks(
            gradient.ctypes.data,
            None if residual is None else residual[:whole],
            whole,
            totals.ctypes.data,
        )
    if whole < numel:
        rest, left = filled_blocks(gradient, residual, whole, numel)
        measure_blocks(rest.ctypes.data, left, BLOCK, totals[whole // UNIT :].ctypes.data)
    moments = moments_from(totals, numel, 0)
    if vanished_or_overflowed(moments):
        kept = np.zeros_like(gradient) if residual is None else residual
        accumulated = gradient + kept
        accumulated = np.where(np.isfinite(accumulated), accumulated, kept)
        nothing = np.empty(0, np.float32)
        moments = exact_moments(
            nothing, accumulated, moments.nonfinite, moments.gradient_square_sum
        )
    return moments


def totals_for(numel: int) -> NDArray[np.float64]:
    """Zeros, a row for each unit."""
    return np.zeros((max(1, -(-numel // UNIT)), TOTALS))


def chunk_bounds(numel: int, threads: int) -> list[tuple[int, int]]:
    """Cut a parameter into at most `threads` ranges of whole units."""
    chunks = max(1, min(threads, numel // SMALLEST_CHUNK))
    size = -(-numel // chunks)
    size = -(-size // UNIT) * UNIT
    return [(start, min(start + size, numel)) for start in range(0, max(numel, 1), max(size, 1))]


class Pass:
    """One pass over a parameter; several threads may be at its ranges."""

    def __init__(
        self,
        gradient: Floats,
        residual: Floats,
        into: Floats,
        threshold: np.float32,
        indices: NDArray[np.int32],
        values: Floats,
        totals: NDArray[np.float64],
        way: int,
    ) -> None:
        self.gradient, self.residual, self.into = gradient, residual, into
        self.threshold, self.way = threshold, way
        arrays = (gradient, residual, into, indices, values, totals)
        self.addresses = [array.ctypes.data for array in arrays]

    def sieve(self, start: int, stop: int, out: int) -> int:
        """Sieve a range that begins with a unit; survivors go to place `out` and behind.

        Returns:
            the number of survivors.
        """
        gradient, residual, into, indices, values, totals = self.addresses
        whole = start + (stop - start) // BLOCK * BLOCK
        survivors = sieve_blocks(
            gradient + start * 4,
            residual + start * 4,
            into + start * 4,
            whole - start,
            self.threshold,
            indices + out * 4,
            values + out * 4,
            start,
            totals + start // UNIT * ROW_BYTES,
            self.way,
        )
        if whole < stop:
            # The last elements go through the same code, on copies filled up to a whole block.
            rest, left = filled_blocks(self.gradient, self.residual, whole, stop)
            assert left is not None
            at = left.ctypes.data
            survivors += sieve_blocks(
                rest.ctypes.data,
                at,
                at,
                BLOCK,
                self.threshold,
                indices + (out + survivors) * 4,
                values + (out + survivors) * 4,
                whole,
                totals + whole // UNIT * ROW_BYTES,
                0,
            )
            if self.way & CLEAR:
                self.gradient[whole:stop] = 0
            self.into[whole:stop] = left[: stop - whole]
        return int(survivors)


def streams(residual: Floats, into: Floats) -> bool:
    """Whether the new residual is written past the caches."""
    if into is residual or into.size < STREAMED_FROM:
        return False
    return into.ctypes.data % STREAM_ALIGNMENT == 0


def filled_blocks(
    gradient: Floats, residual: Floats | None, start: int, stop: int
) -> tuple[Floats, Floats | None]:
    """Copies of `start` to `stop`, filled up to a block with elements that send nothing."""

    def filled(array: Floats) -> Floats:
        block = np.zeros(BLOCK, np.float32)
        block[: stop - start] = array[start:stop]
        return block

    return filled(gradient), None if residual is None else filled(residual)


def close_gaps(
    indices: NDArray[np.int32],
    values: Floats,
    bounds: list[tuple[int, int]],
    counts: list[int],
) -> int:
    """Move the chunks' survivors together; returns their number."""
    end = counts[0]
    for chunk in range(1, len(bounds)):
        at, count = bounds[chunk][0] + chunk * PADDING, counts[chunk]
        indices[end : end + count] = indices[at : at + count]
        values[end : end + count] = values[at : at + count]
        end += count
    return end


def moments_from(totals: NDArray[np.float64], numel: int, survivors: int) -> Moments:
    """Join the units' totals in order: all are sums but the largest magnitude."""
    joined = np.add.accumulate(totals)[-1]
    joined[LARGEST] = totals[:, LARGEST].max()
    return Moments.from_totals(numel, survivors, joined.tolist())


def vanished_or_overflowed(moments: Moments) -> bool:
    squares = moments.unsent_square_sum + moments.survivor_square_sum
    return moments.largest > 0 and not SMALLEST_SQUARE_SUM < squares < np.inf


def exact_moments(
    values: Floats, residual: Floats, nonfinite: int, gradient_square_sum: float
) -> Moments:
    """The moments of what was sent and what was left, summed in float64."""
    sent = values[np.isfinite(values)].astype(np.float64)
    unsent = residual.astype(np.float64)
    magnitudes = np.abs(unsent), np.abs(sent)
    return Moments(
        numel=residual.size,
        survivors=values.size,
        nonfinite=nonfinite,
        sum=in_order(unsent) + in_order(sent),
        unsent_sum=in_order(magnitudes[0]),
        unsent_square_sum=in_order(np.square(unsent)),
        survivor_sum=in_order(magnitudes[1]),
        survivor_square_sum=in_order(np.square(sent)),
        gradient_square_sum=gradient_square_sum,
        largest=float(max(part.max(initial=0.0) for part in magnitudes)),
    )


def in_order(terms: NDArray[np.float64]) -> float:
    """A sum from first to last; numpy's own order, and a library's, depend on the processor."""
    return float(np.add.accumulate(terms)[-1]) if terms.size else 0.0
