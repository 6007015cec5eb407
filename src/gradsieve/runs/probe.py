"""What a link carries: ``torchrun -m gradsieve.runs.probe ORDER``.

All ranks send to all others at the same time, as an exchange of gradients does.
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from gradsieve.link import Link
from gradsieve.runs.config import write_whole
from gradsieve.runs.launch import run_ranks
from gradsieve.runs.rank import joined

PROBED = "probe.json"
ELEMENTS = 2**20
"""float32 that each rank sends in a try, to all others together."""
TRIES, WARM_UP = 7, 2


@dataclass(frozen=True, slots=True)
class Probed:
    """Medians over tries, of rank 0."""

    elements_per_second: float
    """float32 that a rank has sent, and received as many."""
    asked_bits_per_second: int | None
    """What the link was shaped to; None of a bare loopback."""


@dataclass(frozen=True, slots=True)
class Order:
    rate: int | None
    result: str


def probe_link(link: Link, ranks: int, directory: Path) -> None:
    """Leaves what `read_probed` reads. Raises RunError where a rank failed."""
    directory.mkdir(parents=True, exist_ok=True)
    order = directory / "order.json"
    order.write_text(json.dumps(asdict(Order(link.rate, str(directory / PROBED)))))
    run_ranks("gradsieve.runs.probe", order, ranks, link)


def read_probed(directory: Path) -> Probed:
    return Probed(**json.loads((directory / PROBED).read_text()))


def measure(order: Order) -> Probed:
    each = ELEMENTS // max(1, dist.get_world_size() - 1)
    sizes = [0 if rank == dist.get_rank() else each for rank in range(dist.get_world_size())]
    sent, received = torch.ones(sum(sizes)), torch.empty(sum(sizes))
    rates = []
    for _ in range(WARM_UP + TRIES):
        dist.barrier()
        start = time.perf_counter()
        dist.all_to_all_single(received, sent, sizes, sizes)
        rates.append(sent.numel() / (time.perf_counter() - start))
    return Probed(statistics.median(rates[WARM_UP:]), order.rate)


def main(path: str) -> None:
    order = Order(**json.loads(Path(path).read_text()))
    with joined() as rank:
        probed = measure(order)
        if rank == 0:
            write_whole(Path(order.result), asdict(probed))


if __name__ == "__main__":
    main(sys.argv[1])
