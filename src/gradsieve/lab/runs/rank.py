"""A rank of a run whose steps are timed, started by torchrun."""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from gradsieve.exchange.nodes import stated_node_size

TIMEOUT = timedelta(seconds=120)


@contextmanager
def joined() -> Iterator[int]:
    """Join the default group (Gloo), on cores of this rank's node; the block gets the rank.

    The block must leave no DDP model behind.
    """
    pin_to_cores(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield dist.get_rank()
    finally:
        # If a model outlives its group, torch may abort the process ("terminate called without
        # an active exception") if the group is destroyed soon after the last backward pass.
        gc.collect()
        dist.destroy_process_group()


def pin_to_cores(rank: int, ranks: int) -> None:
    """Move this process to the cores that it may use, and use one thread for each."""
    own, threads = cores_of(rank, ranks, stated_node_size(None), sorted(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, own)
    torch.set_num_threads(threads)


def cores_of(
    rank: int, ranks: int, ranks_per_node: int, cores: Sequence[int]
) -> tuple[Sequence[int], int]:
    """Return the cores of a rank, and the number of its threads.

    Nodes stand for machines. Each rank has cores of its own if there are enough. If there are not,
    each node has, and its ranks share them. If there are fewer cores than nodes, all ranks share.
    """
    for sharing in (1, ranks_per_node):
        own = len(cores) * sharing // ranks
        if own:
            first = rank // sharing * own
            return cores[first : first + own], max(1, own // sharing)
    return cores, 1


def sharers(interface: str) -> int:
    """Return how many ranks share one counter of traffic: those of a node, or all on loopback."""
    return dist.get_world_size() if interface == "lo" else stated_node_size(None)
