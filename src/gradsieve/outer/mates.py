"""The ranks whose weights DDP keeps alike between the exchanges of local steps."""

from typing import NamedTuple

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradsieve.config import SieveConfig
from gradsieve.control.budget import Budget
from gradsieve.errors import SieveError
from gradsieve.exchange.managed import AnyGroup, ManagedGroup
from gradsieve.topology import DENSE_TOPOLOGIES

DENSE_NAMES = frozenset(topology.name for topology in DENSE_TOPOLOGIES)


class Mates(NamedTuple):
    """The other ranks whose weights DDP keeps like those of this rank."""

    outside: tuple[dist.ProcessGroup, ...] = ()
    """The group over which DDP averages, if some of its ranks exchange in another one."""
    are_inside: bool = False
    """Whether some of them exchange in the same group as this rank."""


def mates_of(group: AnyGroup, model: DistributedDataParallel) -> Mates:
    """Return the mates of this rank, which exchanges in `group`.

    Raises:
        SieveError: DDP averages over the ranks that are to exchange. Also if others manage the
            group, and it has only one of the ranks over which DDP averages.
    """
    inside = dist.get_process_group_ranks(model.process_group)
    if isinstance(group, ManagedGroup):
        if len(inside) > 1:
            raise SieveError(
                f"DDP keeps the weights of ranks {inside} alike, and each of them has a group of "
                "its own that others manage: after an exchange that fails in one of the groups, "
                "the weights would diverge. Let torch.distributed.fsdp.fully_shard cut the model "
                "over these ranks, or train with one rank where the group has one"
            )
        return Mates()
    exchanging = dist.get_process_group_ranks(group)
    if inside == exchanging:
        raise SieveError(
            f"the DDP model averages gradients over ranks {inside} in every step already; give "
            "OuterSync the module itself, or make DDP with the group of one node's ranks"
        )
    shared = {*inside} & {*exchanging}
    outside = () if len(shared) == len(inside) else (model.process_group,)
    return Mates(outside, are_inside=len(shared) > 1)


def require_no_clock(config: SieveConfig, mates: Mates) -> None:
    """Raise SieveError if the exchange depends on time, which groups of ranks tell differently.

    Mates that exchange in groups of their own keep the same weights only if every group decides
    the same.
    """
    if not mates.outside:
        return
    decides = ""
    if config.topology_name == "auto":
        decides = 'exchange="auto"'
    elif isinstance(config.policy, Budget) and config.topology_name not in DENSE_NAMES:
        decides = f"threshold={config.policy}"
    if decides:
        raise SieveError(
            f"{decides} decides by time, each group of ranks by its own, and process_group has "
            "only some ranks of the node over which DDP averages: their weights would diverge. "
            "Leave process_group away, so that all ranks exchange in one group, or give a "
            'threshold such as Sigma(1) and an exchange such as "gather"'
        )
