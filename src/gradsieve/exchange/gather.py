"""Gather what every rank of the job holds on rank 0, such as checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import SieveError, has, named_ranks
from gradsieve.exchange.frames import ExchangeError, OwnGroup, unreachable
from gradsieve.exchange.meeting import Meeting
from gradsieve.exchange.new_group import new_group, world
from gradsieve.exchange.store import StoreError
from gradsieve.runtime.torch_private import timeout_of

PATIENCE = 30.0
"""Seconds after which the ranks that have not come are named. Rank 0 may be writing the model."""
LONGEST_WAIT = timedelta(minutes=30)
"""The time after which ranks that do not come are an error, where the group has no timeout."""
FAILED = -1
_held: "WeakKeyDictionary[dist.ProcessGroup, int]" = WeakKeyDictionary()
"""The number of gatherings of each default group so far."""


def gather_on_first(make: Callable[[], Tensor], call: str) -> Iterator[Tensor]:
    """Yield what `make` returns on each rank, in rank order, on rank 0. Yield nothing on others.

    All ranks of the default process group must call it together, and use up what it yields. One
    tensor is in memory at a time.

    Args:
        make: a function that returns the bytes of this rank (uint8 [bytes], on the CPU).
        call: the function that the user must call on every rank.

    Raises:
        ExchangeError: a rank has died or stalled, or does not call it.
        SieveError: on every rank, where `make` raises on one. That rank raises its own error.
    """
    error, mine = None, torch.empty(0, dtype=torch.uint8, device="cpu")
    try:
        mine = make()
    except Exception as found:
        error = found
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if error is not None:
            raise error
        yield mine
        return
    meet(call)
    try:
        # DDP and the training loop use the default group, which may take no CPU tensors.
        group = new_group(world(), None, on_host=True)
    except RuntimeError as failure:
        raise unreachable(world(), failure) from failure
    with closing(OwnGroup(group)) as own:
        with own.failing():
            sizes = sizes_of_all(group, FAILED if error is not None else mine.numel())
        if error is not None:
            raise error
        if failed := [rank for rank, size in enumerate(sizes) if size == FAILED]:
            raise SieveError(
                f"{named_ranks(failed)} could not save what {call} gathers; the output there says "
                "why"
            )
        me = dist.get_rank()
        if me == 0:
            yield mine
        for rank, size in enumerate(sizes[1:], 1):
            arrived = torch.empty(size if me == 0 else 0, dtype=torch.uint8, device="cpu")
            with own.failing():
                # A rank whose turn is late must not wait for it longer than the timeout.
                dist.barrier(group=group)
                if me == rank:
                    dist.send(mine, 0, group=group)
                elif me == 0:
                    dist.recv(arrived, rank, group=group)
            if me == 0:
                yield arrived


def meet(call: str) -> None:
    """Wait until every rank has come. Raises ExchangeError, naming the ranks that do not."""
    group = world()
    limit = timeout_of(group) or LONGEST_WAIT
    _held[group] = _held.get(group, 0) + 1
    try:
        meeting = Meeting(group, f"gather/{_held[group]}")
        meeting.come(call)
        if meeting.verdict(PATIENCE) is None:
            meeting.warn_of_missing(f"{call} is to be called on every rank")
        if meeting.verdict(limit.total_seconds()) is None:
            missing = meeting.missing()
            raise ExchangeError(
                f"{named_ranks(missing)} {has(missing)} not called {call}, and the others have "
                f"waited {limit}: call it on every rank, and save the result on rank 0"
            )
    except StoreError:
        # The collectives that follow fail by themselves.
        return


def sizes_of_all(group: dist.ProcessGroup, size: int) -> list[int]:
    mine = torch.tensor([size], dtype=torch.int64, device="cpu")
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine, group=group)
    return [int(other) for other in sizes]
