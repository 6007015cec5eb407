"""Checks that refuse early what the sieve cannot work with, in words that say what to do."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.bucket import Bucket
from gradsieve.bucket.shards import is_a, is_shard
from gradsieve.errors import SieveError
from gradsieve.runtime.torch_private import (
    divides_by_ranks_with_inputs,
    is_flat_parameter,
    uncompiled,
)
from gradsieve.sieve import DTYPES

OLDEST_TORCH = (2, 6)
TAKEN = "float32, float16 and bfloat16"
FIRST_FSDP = "FullyShardedDataParallel"
"""The class of FSDP that packs parameters together. `fully_shard` (FSDP2) cuts each by itself."""
SHARD_ANEW = (
    "shard it with fully_shard (FSDP2) over one dimension of a mesh, fully_shard(model, mesh="
    'mesh["shard"]), and give gradsieve process_group=mesh["replicate"].get_group(), or train '
    "without FSDP"
)


def require_hookable(model: object) -> None:
    """Raise TypeError unless `attach` takes the model. The message says what to do instead."""
    if isinstance(model, DistributedDataParallel):
        return
    found = f"attach takes a torch.nn.parallel.DistributedDataParallel, got {type(model).__name__}"
    inner = uncompiled(model)
    if isinstance(inner, DistributedDataParallel):
        raise TypeError(
            f"{found}: attach before torch.compile: sieve = gs.attach(ddp); "
            "model = torch.compile(ddp)"
        )
    require_unsharded(inner, found)
    if inner is not model:
        raise TypeError(
            f"{found}: wrap and attach before torch.compile: ddp = DDP(model); "
            "sieve = gs.attach(ddp); model = torch.compile(ddp)"
        )
    if isinstance(model, nn.DataParallel):
        raise TypeError(
            f"{found}, which trains in one process; wrap its module instead: model = "
            "DDP(model.module), in one process a device"
        )
    if not callable(getattr(model, "register_comm_hook", None)):
        raise TypeError(
            f"{found}; wrap the model first: model = DDP(model). A loop without DDP averages by "
            "gs.Averager(model.named_parameters())"
        )


def require_unsharded(model: object, found: str) -> None:
    """Raise TypeError if FSDP has cut the parameters. The message begins with `found`."""
    require_not_packed(model, found)
    if is_sharded(model):
        raise TypeError(
            f"{found}, and FSDP has cut its parameters: each rank has the gradients of its own "
            "part. Between the ranks that hold the same part use gs.Averager(model."
            'named_parameters(), process_group=mesh["replicate"].get_group()), or gs.OuterSync '
            "for local steps"
        )


def require_not_packed(model: object, found: str) -> None:
    """Raise TypeError if FSDP has packed parameters together. The message begins with `found`."""
    modules = tuple(model.modules()) if isinstance(model, nn.Module) else ()
    is_packed = any(is_a(module, FIRST_FSDP) for module in modules)
    if is_packed or any(map(is_flat_parameter, parameters_of(model))):
        raise TypeError(f"{found}, whose parameters FSDP has packed together; {SHARD_ANEW}")


def is_sharded(model: object) -> bool:
    """Return whether FSDP has cut the parameters of a model."""
    by_module = any(is_a(model, name) for name in (FIRST_FSDP, "FSDPModule"))
    return by_module or any(map(is_shard, (model, *parameters_of(model))))


def parameters_of(model: object) -> tuple[object, ...]:
    return tuple(model.parameters()) if isinstance(model, nn.Module) else ()


def require_no_flat_parameter(name: str, parameter: Tensor) -> None:
    """Raise SieveError if FSDP has packed the parameter together with others."""
    if is_flat_parameter(parameter):
        raise SieveError(f"{name} is a flat parameter of FullyShardedDataParallel; {SHARD_ANEW}")


def require_bucket(bucket: Bucket) -> None:
    buffer = bucket.buffer()
    require_strided(f"a parameter of shape {list(bucket.parameters()[0].shape)}", buffer)
    for parameter in bucket.parameters():
        require_dtype(f"a parameter of shape {list(parameter.shape)}", parameter)
    if buffer.dtype not in DTYPES:
        raise SieveError(f"a bucket of gradients is {buffer.dtype}; the sieve takes {TAKEN}")


def require_strided(what: str, gradient: Tensor) -> None:
    """Raise SieveError if the gradient of a parameter is sparse."""
    if gradient.layout is not torch.strided:
        raise SieveError(
            f"{what} has a sparse gradient, which the sieve cannot prune; make it dense "
            "(torch.nn.Embedding(..., sparse=False))"
        )


def require_prunable(model: nn.Module, ignored: Collection[str] = ()) -> None:
    """Raise SieveError if the gradients of a trained parameter cannot be pruned.

    Args:
        ignored: the names of parameters that are not exchanged.
    """
    trained = {
        id(parameter): name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in ignored
    }
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            require_dtype(f"parameter {name}", parameter)
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or not module.sparse:
            continue
        if (parameter_name := trained.get(id(module.weight))) is not None:
            kind = type(module).__name__
            raise SieveError(
                f"parameter {parameter_name} has sparse gradients, which the sieve cannot prune: "
                f"make module {name or 'itself'} with {kind}(..., sparse=False), or freeze it"
            )


def require_dtype(what: str, parameter: Tensor) -> None:
    """Raise SieveError unless the sieve takes gradients of the dtype of the parameter."""
    dtype = parameter.dtype
    if dtype in DTYPES:
        return
    advice = "model.float() converts the parameters"
    if dtype.is_complex:
        advice = (
            "keep it as a float32 parameter with a last dimension of 2, and call "
            "torch.view_as_complex on it in forward"
        )
    raise SieveError(f"{what} is {dtype}; the sieve takes {TAKEN}: {advice}, or freeze it")


def require_even_division(model: DistributedDataParallel) -> None:
    """Raise SieveError inside a join that divides by the ranks that still have inputs."""
    if divides_by_ranks_with_inputs(model):
        raise SieveError(
            "model.join(divide_by_initial_world_size=False) divides by the ranks that still have "
            "inputs, the sieve always by all ranks: use model.join() alone"
        )


def require_all_buckets(model: DistributedDataParallel) -> None:
    if getattr(model, "skip_all_reduce_unused_params", False):
        raise SieveError(
            "DDP(skip_all_reduce_unused_params=True) leaves buckets out, which the sieve must "
            "see in every step; use find_unused_parameters=True alone"
        )


def require_torch(version: str | None = None) -> None:
    found = torch.__version__ if version is None else version
    major, minor = (int(part) for part in found.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise SieveError(
            f"gradsieve needs torch {oldest} or later, found {found}: pip install -U torch"
        )
