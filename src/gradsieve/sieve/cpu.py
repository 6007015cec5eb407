"""The sieve on the CPU: the kernel over chunks of a parameter, one a thread."""

import numpy as np
import torch
from numpy.typing import NDArray

from gradsieve.sieve.kernel import (
    BLOCK,
    CLEAR,
    LARGEST,
    PADDING,
    STREAM,
    STREAM_ALIGNMENT,
    TILE,
    TOTALS,
    measure_blocks,
    sieve_blocks,
)
from gradsieve.sieve.moments import Moments
from gradsieve.sieve.workspace import Workspace
from gradsieve.threads import shared

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

    The new residual goes to `into`, which is `residual` or does not overlap it.
    """
    numel = gradient.size
    bounds = chunk_bounds(numel, torch.get_num_threads())
    indices, values = out.free(numel + len(bounds) * PADDING)
    limit = np.float32(threshold)
    totals = np.zeros((len(bounds), TOTALS))

    def sieve(chunk: int) -> int:
        start, stop = bounds[chunk]
        at = start + chunk * PADDING
        return sieve_range(
            gradient,
            residual,
            into,
            limit,
            start,
            stop,
            indices[at:],
            values[at:],
            totals[chunk],
            clear,
        )

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
    totals = np.zeros((1, TOTALS))
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
        measure_blocks(rest.ctypes.data, left, BLOCK, totals.ctypes.data)
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


def chunk_bounds(numel: int, threads: int) -> list[tuple[int, int]]:
    """Cut a parameter into at most `threads` ranges of whole tiles."""
    chunks = max(1, min(threads, numel // SMALLEST_CHUNK))
    size = -(-numel // chunks)
    size = -(-size // TILE) * TILE
    return [(start, min(start + size, numel)) for start in range(0, max(numel, 1), max(size, 1))]


def sieve_range(
    gradient: Floats,
    residual: Floats,
    into: Floats,
    threshold: np.float32,
    start: int,
    stop: int,
    indices: NDArray[np.int32],
    values: Floats,
    totals: NDArray[np.float64],
    clear: bool,
) -> int:
    whole = start + (stop - start) // BLOCK * BLOCK
    way = (CLEAR if clear else 0) | (STREAM if streams(residual, into) else 0)
    survivors = sieve_blocks(
        gradient.ctypes.data + start * 4,
        residual.ctypes.data + start * 4,
        into.ctypes.data + start * 4,
        whole - start,
        threshold,
        indices.ctypes.data,
        values.ctypes.data,
        start,
        totals.ctypes.data,
        way,
    )
    if whole < stop:
        # The last elements go through the same code, on copies filled up to a whole block.
        rest, left = filled_blocks(gradient, residual, whole, stop)
        assert left is not None
        survivors += sieve_blocks(
            rest.ctypes.data,
            left.ctypes.data,
            left.ctypes.data,
            BLOCK,
            threshold,
            indices.ctypes.data + survivors * 4,
            values.ctypes.data + survivors * 4,
            whole,
            totals.ctypes.data,
            0,
        )
        if clear:
            gradient[whole:stop] = 0
        into[whole:stop] = left[: stop - whole]
    return int(survivors)


def streams(residual: Floats, into: Floats) -> bool:
    elsewhere = into.ctypes.data != residual.ctypes.data
    aligned = into.ctypes.data % STREAM_ALIGNMENT == 0
    return elsewhere and aligned and into.size >= STREAMED_FROM


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
    """Join the chunks' totals: all are sums but the largest magnitude."""
    joined = totals.sum(axis=0)
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
        sum=float(unsent.sum() + sent.sum()),
        unsent_sum=float(magnitudes[0].sum()),
        unsent_square_sum=float(unsent @ unsent),
        survivor_sum=float(magnitudes[1].sum()),
        survivor_square_sum=float(sent @ sent),
        gradient_square_sum=gradient_square_sum,
        largest=float(max(part.max(initial=0.0) for part in magnitudes)),
    )
