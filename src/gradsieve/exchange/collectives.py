"""The collectives of groups, whether torch.distributed or someone else manages them."""

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.exchange.managed import AnyGroup, ManagedGroup


def ranks_of(group: AnyGroup) -> list[int]:
    """Return the ranks of a group in the job; of a managed group, those in the group."""
    if isinstance(group, ManagedGroup):
        return list(range(group.size()))
    return dist.get_process_group_ranks(group)


def own_rank(group: AnyGroup) -> int:
    """Return which of `ranks_of` this process is."""
    return group.rank() if isinstance(group, ManagedGroup) else dist.get_rank()


def all_to_all(
    received: Tensor,
    sent: Tensor,
    group: AnyGroup,
    arriving: list[int] | None = None,
    leaving: list[int] | None = None,
) -> None:
    """Send every rank a part of a tensor. See `ManagedGroup.all_to_all`."""
    if isinstance(group, ManagedGroup):
        group.all_to_all(received, sent, arriving, leaving)
    else:
        dist.all_to_all_single(received, sent, arriving, leaving, group=group)


def all_gather(mine: Tensor, group: AnyGroup) -> list[Tensor]:
    """Return the tensors of all ranks, which have one shape."""
    if isinstance(group, ManagedGroup):
        return group.all_gather(mine)
    arrived = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(arrived, mine, group=group)
    return arrived


def begin_all_reduce(tensor: Tensor, group: AnyGroup) -> dist.Work | None:
    """Begin to add up a tensor over all ranks. In a managed group it is done on return."""
    if isinstance(group, ManagedGroup):
        group.all_reduce(tensor)
        return None
    work: dist.Work | None = dist.all_reduce(tensor, group=group, async_op=True)
    return work
