"""The states of all ranks in one, for frameworks whose checkpoint is one file."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import torch
import torch.distributed as dist

from gradsieve.checkpoint import HasState
from gradsieve.exchange import group_of_its_own
from gradsieve.exchange.new_group import world

VERSION = 1


def gathered(state: HasState) -> dict[str, Any]:
    """Return on rank 0 the states of all ranks, on the CPU. It is a collective of all ranks."""
    packed = BytesIO()
    torch.save(state.state_dict(), packed)
    # NCCL would gather on one GPU what all ranks hold.
    group = world() if "gloo" in dist.get_backend() else group_of_its_own(world())
    found = [b""] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(packed.getvalue(), found, group=group)
    if group is not world():
        dist.destroy_process_group(group)
    states = [torch.load(BytesIO(one), "cpu", weights_only=True) for one in found or ()]
    return {"version": VERSION, "world_size": dist.get_world_size(), "states": states}


def own_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return this rank's own of the states that were gathered.

    Raises:
        ValueError: there is another number of them.
    """
    size, world_size = saved["world_size"], dist.get_world_size()
    if size != world_size:
        raise ValueError(
            f"the states were gathered from {size} ranks and are loaded by {world_size}: "
            f'gs.reshard(saved["states"], {world_size}) makes those of {world_size} ranks'
        )
    own: dict[str, Any] = saved["states"][dist.get_rank()]
    return own
