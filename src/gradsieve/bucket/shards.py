"""Parameters that FSDP has cut into shards, of which each rank holds one (its local shard).

Replicas are ranks that hold the same shard. Only their gradients can be averaged.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from gradsieve.errors import SieveError, named_ranks
from gradsieve.runtime.torch_private import names_of_root_mesh


def is_a(part: object, name: str) -> bool:
    """Return whether an object is of a class. It is compared by name: importing FSDP takes long."""
    return any(base.__name__ == name for base in type(part).__mro__)


def is_shard(tensor: object) -> bool:
    return is_a(tensor, "DTensor")


def is_offloaded(tensor: Tensor) -> bool:
    """Return whether a shard is in CPU memory, while FSDP computes on another device."""
    return is_shard(tensor) and tensor.device.type != as_dtensor(tensor).device_mesh.device_type


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, in the same memory and without a gradient."""
    held: Tensor = as_dtensor(tensor).to_local() if is_shard(tensor) else tensor
    return held.detach()


def placements_of(tensor: Tensor) -> str:
    """Return how a DTensor is divided: ``S(0)`` along its first dimension, ``R`` not at all."""
    return ", ".join(map(str, as_dtensor(tensor).placements))


def place_of(tensor: Tensor) -> str:
    """Return which shard this rank holds, as in ``shard 1 of 2 by S(0)``."""
    mesh = as_dtensor(tensor).device_mesh
    part = ", ".join(map(str, mesh.get_coordinate() or ()))
    return f"shard {part} of {', '.join(map(str, mesh.shape))} by {placements_of(tensor)}"


def places_of(tensors: Iterable[Tensor]) -> str:
    """Return which shards of a model this rank holds; empty if every tensor is whole.

    Replicas have the same text. A saved state belongs to it: another rank among those that shard,
    or another number of them, has another.
    """
    return "; ".join(sorted({place_of(tensor) for tensor in tensors if is_shard(tensor)}))


def gather_no_more(model: nn.Module) -> None:
    """Register the shards as the parameters of the model, where FSDP has left whole ones.

    FSDP does so after a forward pass without a backward pass, such as an evaluation. The next
    forward pass would then use the whole ones as they are.
    """
    for module in model.modules():
        if is_a(module, "FSDPModule"):
            as_fsdp_module(module).reshard()


def described(name: str, tensor: Tensor) -> str:
    """Return a line about a parameter that replicas have in common."""
    mine = f"{name} {list(local(tensor).shape)} {tensor.dtype}"
    return f"{mine}: {place_of(tensor)} of {list(tensor.shape)}" if is_shard(tensor) else mine


def require_replicas(named: Sequence[tuple[str, Tensor]], ranks: Collection[int]) -> None:
    """Raise SieveError if ranks that are to exchange hold different shards of a parameter.

    Also if FSDP averages over them already.

    Args:
        ranks: the ranks that are to exchange.
    """
    for name, tensor in named:
        if not is_shard(tensor):
            continue
        mesh = as_dtensor(tensor).device_mesh
        together = sorted({*mesh.mesh.flatten().tolist()} & {*ranks})
        if len(together) < 2:
            continue
        if any(placement.is_replicate() for placement in as_dtensor(tensor).placements):
            raise SieveError(
                f"parameter {name} is replicated over {named_ranks(together)} by FSDP, which "
                f"averages its gradients already: shard over one dimension of the mesh, as "
                f'fully_shard(model, mesh=mesh["shard"]), and give gradsieve the other'
            )
        raise SieveError(
            f"{named_ranks(together)} hold different shards of parameter {name}, and only ranks "
            f"that hold the same one can average it: give gradsieve {replicas_of(mesh)}"
        )


def replicas_of(mesh: Any) -> str:
    """Return what to write for the process group of the replicas of a mesh."""
    others = [name for name in names_of_root_mesh(mesh) if name not in (mesh.mesh_dim_names or ())]
    if len(others) == 1:
        return f'process_group=mesh["{others[0]}"].get_group()'
    if others:
        return (
            f"the process group of one of the mesh's dimensions {', '.join(others)}: that over "
            "which the model is replicated"
        )
    return (
        'process_group=mesh["replicate"].get_group() of a mesh that has such a dimension: mesh = '
        'init_device_mesh(device, (nodes, ranks_per_node), mesh_dim_names=("replicate", "shard")); '
        'fully_shard(model, mesh=mesh["shard"])'
    )


def as_fsdp_module(module: nn.Module) -> Any:
    """Let type checkers take the methods of FSDPModule."""
    return module


def as_dtensor(tensor: Tensor) -> Any:
    """Let type checkers take the methods of DTensor."""
    return tensor
