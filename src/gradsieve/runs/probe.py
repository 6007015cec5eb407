"""What a link carries: ``torchrun -m gradsieve.runs.probe ORDER``.

All ranks send to all others at the same time, as an exchange of gradients does.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from gradsieve.link import Link, read_counters
from gradsieve.runs.launch import run_ranks
from gradsieve.runs.rank import joined, sharers

ELEMENTS = 2**20
"""float32 that each rank sends in a try, to all others together."""
TRIES, WARM_UP = 7, 2


@dataclass(frozen=True, slots=True)
class Probed:
    """Medians over tries, of rank 0."""

    elements_per_second: float
    """float32 that a rank has sent, and received as many."""
    sent_bytes_per_second: float
    """By the interface's counter, headers included."""
    asked_bits_per_second: int | None
    """What the link was shaped to; None of a bare loopback."""


@dataclass(frozen=True, slots=True)
class Order:
    interface: str
    rate: int | None
    result: str


def probe_link(
    link: Link, ranks: int, directory: Path, watch: Callable[[], None] = lambda: None
) -> Probed:
    """Raises RunError where a rank failed."""
    directory.mkdir(parents=True, exist_ok=True)
    order, result = directory / "order.json", directory / "probe.json"
    order.write_text(json.dumps(asdict(Order(link.interface, link.rate, str(result)))))
    run_ranks("gradsieve.runs.probe", order, ranks, link, watch)
    return read_probed(result)


def read_probed(path: Path) -> Probed:
    return Probed(**json.loads(path.read_text()))


def measure(order: Order) -> Probed:
    each = ELEMENTS // max(1, dist.get_world_size() - 1)
    sizes = [0 if rank == dist.get_rank() else each for rank in range(dist.get_world_size())]
    sent, received = torch.ones(sum(sizes)), torch.empty(sum(sizes))
    rates = []
    for _ in range(WARM_UP + TRIES):
        dist.barrier()
        before, start = read_counters(order.interface), time.perf_counter()
        dist.all_to_all_single(received, sent, sizes, sizes)
        seconds = time.perf_counter() - start
        dist.barrier()
        counted = (read_counters(order.interface) - before).sent_bytes
        rates.append((sent.numel() / seconds, counted / sharers(order.interface) / seconds))
    elements, sent_bytes = (statistics.median(rate) for rate in zip(*rates[WARM_UP:], strict=True))
    return Probed(elements, sent_bytes, order.rate)


def main(path: str) -> None:
    order = Order(**json.loads(Path(path).read_text()))
    with joined() as rank:
        probed = measure(order)
        if rank == 0:
            Path(order.result).write_text(json.dumps(asdict(probed)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
