"""The throughput of a link: ``torchrun -m gradsieve.lab.runs.throughput ORDER``.

All ranks send at the same time, as in an exchange of gradients.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from gradsieve.lab.link import Link
from gradsieve.lab.runs.order import answer_order, ask_ranks, read_found

ELEMENTS = 2**21
"""The float32 elements that each rank sends in a try."""
TRIES, WARM_UP = 12, 3


@dataclass(frozen=True, slots=True)
class Throughput:
    """The quickest of several tries, as rank 0 measured it."""

    elements_per_second: float
    """The float32 elements that a rank has sent a second, while it received as many."""
    asked_bits_per_second: int | None
    """The rate that the link was shaped to; None on bare loopback."""


@dataclass(frozen=True, slots=True)
class ThroughputOrder:
    rate: int | None


def measure_throughput(link: Link, ranks: int, directory: Path) -> None:
    """Measure, and write what `read_throughput` reads. Raises RunError where a rank failed."""
    ask_ranks("gradsieve.lab.runs.throughput", ThroughputOrder(link.rate), directory, ranks, link)


def read_throughput(directory: Path) -> Throughput:
    return Throughput(**read_found(directory))


def measure(order: ThroughputOrder) -> Throughput:
    """Measure while each rank sends to the next one and receives from the one before.

    An all-to-all of two ranks may first send and then receive, at half the rate.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    sent = torch.ones(ELEMENTS, dtype=torch.float32, device="cpu")
    received = torch.empty_like(sent)
    rates = []
    dist.barrier()
    for _ in range(WARM_UP + TRIES):
        start = time.perf_counter()
        receiving = dist.irecv(received, (rank - 1) % ranks)
        sending = dist.isend(sent, (rank + 1) % ranks)
        for work in (receiving, sending):
            if work is not None:
                work.wait()
        rates.append(ELEMENTS / (time.perf_counter() - start))
    return Throughput(max(rates[WARM_UP:]), order.rate)


if __name__ == "__main__":
    answer_order(sys.argv[1], lambda order: measure(ThroughputOrder(**order)))
