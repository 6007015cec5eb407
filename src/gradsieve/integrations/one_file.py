"""The states of all ranks in one file, for frameworks whose checkpoint rank 0 writes alone."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
import torch.distributed as dist

from gradsieve.exchange import group_of_its_own
from gradsieve.exchange.new_group import world
from gradsieve.integrations.local_steps import require_kind


def states_of_all_ranks(own: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the states of all ranks on rank 0, on the CPU; None on the others.

    It is a collective of the default process group.

    Args:
        own: the state of this rank, as plain data and tensors.
    """
    packed = BytesIO()
    torch.save(own, packed)
    # NCCL would gather on one GPU what all ranks hold.
    group = world() if "gloo" in dist.get_backend() else group_of_its_own(world())
    found = [b""] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(packed.getvalue(), found, group=group)
    if group is not world():
        dist.destroy_process_group(group)
    if found is None:
        return None
    return [torch.load(BytesIO(one), map_location="cpu", weights_only=True) for one in found]


def state_of_this_rank(states: Sequence[dict[str, Any]], *, local: bool) -> dict[str, Any]:
    """Return what this rank had saved.

    Args:
        local: whether local steps go on with it.

    Raises:
        ValueError: there is another number of ranks, or they were saved with local steps and go on
            without, or vice versa.
    """
    if len(states) != dist.get_world_size():
        raise ValueError(
            f"the checkpoint has the states of {len(states)} ranks, and there are "
            f"{dist.get_world_size()}: gs.reshard makes the states of another number of ranks"
        )
    own = states[dist.get_rank()]
    require_kind(own, local=local)
    return own
