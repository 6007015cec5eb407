"""Measure the link of a group with a few frames, so that the fastest topology can be chosen."""

import time

import torch

from gradsieve.exchange.cost import LinkCost
from gradsieve.exchange.frames import FrameExchange, numbers_of_all

SMALL, REPEATS = 8, 5
LARGE = 2**16
"""Bytes that each rank sends to all others together in the first try. Each next try sends four
times as many, up to `LARGEST`."""
LARGEST = 2**22
LONG_ENOUGH = 0.02
"""Seconds that a transfer must take for its rate to be trusted."""


def measure_link(exchange: FrameExchange) -> LinkCost:
    """Return the latency and rate of the slowest rank's link, the same on all ranks.

    It takes a few round trips and, on the slowest links, six times as long as 64 KiB take.
    """
    peers = exchange.world_size - 1
    if not peers:
        return LinkCost(latency=0.0, rate=float("inf"))
    latency = quickest(exchange, SMALL) / 2
    size = LARGE
    while True:
        each = max(SMALL, size // peers)
        if largest(exchange, timed(exchange, each)) > LONG_ENOUGH or size >= LARGEST:
            seconds = quickest(exchange, each)
            return LinkCost(latency, peers * each / max(1e-6, seconds - 2 * latency))
        size *= 4


def agreed(everyone: FrameExchange, cost: LinkCost) -> LinkCost:
    """Return the worst cost that groups of ranks have measured, the same on all ranks."""
    latency = largest(everyone, cost.latency)
    return LinkCost(latency, 1 / max(largest(everyone, 1 / cost.rate), 1e-12))


def quickest(exchange: FrameExchange, size: int) -> float:
    """Return the seconds that the slowest rank takes for the fastest of several transfers.

    The fastest counts, because another process may delay one of them.
    """
    return largest(exchange, min(timed(exchange, size) for _ in range(REPEATS)))


def timed(exchange: FrameExchange, size: int) -> float:
    frame = torch.zeros(size, dtype=torch.uint8, device="cpu")
    start = time.perf_counter()
    exchange.to_all(frame)
    return time.perf_counter() - start


def largest(exchange: FrameExchange, number: float) -> float:
    """Return the largest of the numbers of all ranks."""
    mine = torch.tensor([number], dtype=torch.float64, device="cpu")
    return max(numbers_of_all(exchange, mine))[0]
