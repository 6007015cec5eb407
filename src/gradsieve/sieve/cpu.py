"""Selection on the CPU: the kernel runs over chunks of a parameter, each in a thread."""

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
"""The fewest elements of a chunk that are worth handing to another thread."""
STREAMED_FROM = 4 * 1024 * 1024
"""The fewest elements of a new residual that is written past the caches, if it goes to other memory
than the old one. It would not fit the caches, and writing through them reads each line first (1.0
instead of 1.4 to 1.5 G elements/s on one core)."""
SMALLEST_SQUARE_SUM = 1e-25
"""Smaller sums are computed again in float64, since squares may have vanished in float32."""


def sieve_on_cpu(
    gradient: Floats,
    residual: Floats,
    into: Floats,
    threshold: float,
    out: Workspace,
    *,
    clear: bool,
) -> tuple[NDArray[np.int32], Floats, Moments]:
    """Do what `select` does, for flat float32 arrays.

    The new residual is written to `into`, which is `residual` itself or does not overlap it.

    Returns:
        indices (int32) and values (float32), as views into `out`, and the moments.

    Raises:
        TypeError: an array has another dtype.
        ValueError: sizes differ, an array is not contiguous, or one to be written is read-only.
    """
    numel = gradient.size
    require_gradient = require_target if clear else require_array
    require_gradient("the gradient", gradient, FLOAT32)
    require_array("the residual", residual, FLOAT32, numel)
    require_target("what gets the residual", into, FLOAT32, numel)
    bounds = chunk_bounds(numel, torch.get_num_threads())
    indices, values = out.free(numel + len(bounds) * PADDING)
    totals = totals_for(numel)
    flags = (CLEAR if clear else 0) | (STREAM if streams(residual, into) else 0)
    one_pass = Pass(gradient, residual, into, np.float32(threshold), indices, values, totals, flags)

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
    """Do what `measure` does, for flat float32 arrays.

    Raises:
        TypeError: an array has another dtype.
        ValueError: sizes differ, or an array is not contiguous.
    """
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
    """Return zeros, float64 [units, TOTALS]."""
    return np.zeros((max(1, -(-numel // UNIT)), TOTALS))


def chunk_bounds(numel: int, threads: int) -> list[tuple[int, int]]:
    """Cut a parameter into at most `threads` ranges of whole units, each (start, stop)."""
    chunks = max(1, min(threads, numel // SMALLEST_CHUNK))
    size = -(-numel // chunks)
    size = -(-size // UNIT) * UNIT
    return [(start, min(start + size, numel)) for start in range(0, max(numel, 1), max(size, 1))]


class Pass:
    """The arrays of one pass over a parameter, whose ranges several threads may work on."""

    def __init__(
        self,
        gradient: Floats,
        residual: Floats,
        into: Floats,
        threshold: np.float32,
        indices: NDArray[np.int32],
        values: Floats,
        totals: NDArray[np.float64],
        flags: int,
    ) -> None:
        self.gradient, self.residual, self.into = gradient, residual, into
        self.threshold, self.flags = threshold, flags
        arrays = (gradient, residual, into, indices, values, totals)
        self.addresses = [array.ctypes.data for array in arrays]

    def sieve(self, start: int, stop: int, out: int) -> int:
        """Sieve a range that begins with a unit, and return the number of survivors.

        The survivors are written from place `out` on.
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
            self.flags,
        )
        if whole < stop:
            # The last elements go through the same code, as copies filled up to a whole block.
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
            if self.flags & CLEAR:
                self.gradient[whole:stop] = 0
            self.into[whole:stop] = left[: stop - whole]
        return int(survivors)


def streams(residual: Floats, into: Floats) -> bool:
    """Return whether the new residual is to be written past the caches."""
    if into is residual or into.size < STREAMED_FROM:
        return False
    return into.ctypes.data % STREAM_ALIGNMENT == 0


def filled_blocks(
    gradient: Floats, residual: Floats | None, start: int, stop: int
) -> tuple[Floats, Floats | None]:
    """Return copies of the elements `start` to `stop`, filled up to a block with zeros."""

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
    """Move the chunks' survivors together, and return their number."""
    end = counts[0]
    for chunk in range(1, len(bounds)):
        at, count = bounds[chunk][0] + chunk * PADDING, counts[chunk]
        indices[end : end + count] = indices[at : at + count]
        values[end : end + count] = values[at : at + count]
        end += count
    return end


def moments_from(totals: NDArray[np.float64], numel: int, survivors: int) -> Moments:
    """Return the moments of all units. Sums are added up in the order of the units."""
    joined = np.add.accumulate(totals)[-1]
    joined[LARGEST] = totals[:, LARGEST].max()
    return Moments.from_totals(numel, survivors, joined.tolist())


def vanished_or_overflowed(moments: Moments) -> bool:
    """Return whether squares may have left the range of float32."""
    squares = moments.unsent_square_sum + moments.survivor_square_sum
    return moments.largest > 0 and not SMALLEST_SQUARE_SUM < squares < np.inf


def exact_moments(
    values: Floats, residual: Floats, nonfinite: int, gradient_square_sum: float
) -> Moments:
    """Return the moments of survivors' values and of the new residual, summed in float64."""
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
    """Return a sum in the order of its terms; numpy's own order depends on the processor."""
    return float(np.add.accumulate(terms)[-1]) if terms.size else 0.0
