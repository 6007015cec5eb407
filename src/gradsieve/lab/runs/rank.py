"""A rank of a run whose steps are timed, started by torchrun."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=120)


@contextmanager
def joined() -> Iterator[int]:
    """Join the default group (Gloo), on cores of this rank's own; the block gets the rank.

    The block must leave no DDP model behind.
    """
    pin_to_a_core(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield dist.get_rank()
    finally:
        # If a model outlives its group, torch may abort the process ("terminate called without
        # an active exception") if the group is destroyed soon after the last backward pass.
        gc.collect()
        dist.destroy_process_group()


def pin_to_a_core(rank: int, ranks: int) -> None:
    """Give each rank cores of its own, if there are enough: ranks stand for machines."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= ranks:
        own = len(cores) // ranks
        os.sched_setaffinity(0, cores[rank * own : (rank + 1) * own])
        torch.set_num_threads(own)
    else:
        torch.set_num_threads(1)


def sharers(interface: str) -> int:
    """Return how many ranks share one counter of traffic: all of them do on loopback."""
    return dist.get_world_size() if interface == "lo" else 1
