"""The link of a group, measured by a few frames."""

import time

import torch

from gradsieve.exchange.cost import LinkCost
from gradsieve.exchange.frames import FrameExchange, numbers_of_all

SMALL, REPEATS = 8, 5
LARGE = 2**16
"""Bytes that each rank sends to all others together, four times as many in the next try."""
LARGEST = 2**22
LONG_ENOUGH = 0.02
"""Seconds of a transfer after which a rate is believed."""


def measure_link(exchange: FrameExchange) -> LinkCost:
    """The latency and rate of the slowest rank's link, the same on all ranks.

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
    """The worst of what groups of ranks have measured, the same on all ranks."""
    latency = largest(everyone, cost.latency)
    return LinkCost(latency, 1 / max(largest(everyone, 1 / cost.rate), 1e-12))


def quickest(exchange: FrameExchange, size: int) -> float:
    """Seconds on the slowest rank, of several tries: another process may hold one up."""
    return largest(exchange, min(timed(exchange, size) for _ in range(REPEATS)))


def timed(exchange: FrameExchange, size: int) -> float:
    frame = torch.zeros(size, dtype=torch.uint8, device="cpu")
    start = time.perf_counter()
    exchange.to_all(frame)
    return time.perf_counter() - start


def largest(exchange: FrameExchange, number: float) -> float:
    """Of all ranks' numbers, the same on all."""
    mine = torch.tensor([number], dtype=torch.float64, device="cpu")
    return max(numbers_of_all(exchange, mine))[0]
