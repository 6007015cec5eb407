"""Make process groups for the communication thread."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch.distributed as dist

from gradsieve.errors import SieveError
from gradsieve.exchange.frames import unreachable
from gradsieve.exchange.managed import AnyGroup, ManagedGroup
from gradsieve.exchange.texts import counts_of_all
from gradsieve.runtime.torch_private import process_groups_joined, timeout_of

_named: "WeakKeyDictionary[dist.ProcessGroup, int]" = WeakKeyDictionary()
"""The largest number of groups by which torch has named one, for each default group."""


def group_of_its_own(
    group: AnyGroup, places: Sequence[int] | None = None, *, on_host: bool = True
) -> AnyGroup:
    """Make a group of ranks of `group`, with its timeout. All of them must call it together.

    DDP and the training loop issue collectives on `group` while the communication thread issues
    its own. In one group, their order would differ from rank to rank. A managed group is returned
    itself, since no other can be made of its ranks.

    Args:
        places: the ranks in `group`, which must have passed `require_alike_names`; None for all.
        on_host: whether to use Gloo, since frames are made and checked on the CPU. Otherwise the
            group has the backend of `group`.

    Raises:
        ExchangeError: a rank has died or stalled.
        SieveError: on every rank, if torch would give the group different names on them.
    """
    if isinstance(group, ManagedGroup):
        return group
    try:
        return new_group(group, places, on_host=on_host)
    except SieveError:
        raise
    except RuntimeError as error:
        raise unreachable(group, error) from error


def new_group(
    group: dist.ProcessGroup, places: Sequence[int] | None, *, on_host: bool
) -> dist.ProcessGroup:
    ranks = dist.get_process_group_ranks(group)
    whole = places is None and len(ranks) == dist.get_world_size()
    if places is None and not whole:
        require_alike_names(counts_of_all(group, groups_joined()))
    if not whole:
        _named[world()] = groups_joined()
    made = dist.new_group(
        ranks=[ranks[place] for place in places] if places is not None else ranks,
        timeout=timeout_of(group),
        backend="gloo" if on_host else dist.get_backend(group),
        use_local_synchronization=not whole,
    )
    if not isinstance(made, dist.ProcessGroup):
        raise SieveError(f"torch.distributed gave no process group but {made!r}")
    return made


def world() -> dist.ProcessGroup:
    if dist.group.WORLD is None:
        raise SieveError("torch.distributed has no process group any more")
    return dist.group.WORLD


def groups_joined() -> int:
    """Return the number of groups that this rank is in, after joining more if needed.

    torch names groups by this number, so it must be larger than for any group before. A name that
    is used again, after groups were destroyed, would find old addresses in the store.
    """
    while (joined := process_groups_joined()) <= _named.get(world(), 0):
        dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)
    return joined


def require_alike_names(joined: Sequence[int]) -> None:
    """Require that all ranks are in equally many groups.

    If only some ranks of the world make a group, torch names it by that number. Ranks with
    different numbers would wait for different names until the timeout.

    Args:
        joined: the number of groups that each rank is in.

    Raises:
        SieveError: the numbers differ.
    """
    if len({*joined}) > 1:
        raise SieveError(
            f"the ranks are in different numbers of process groups ({', '.join(map(str, joined))}),"
            " and torch can make no common one of some ranks then: let every rank join as many "
            "before gradsieve's first exchange"
        )
