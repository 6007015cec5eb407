"""Every private name of torch that gradsieve uses.

A new version of torch may rename any of them without notice. Each function says why it is needed
and what happens where torch lacks the name. All were looked at in torch 2.6.0 and 2.13.0; a test
calls each of them, so that a version that has dropped one fails there by name.
"""

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# It is `torch.distributed.GradBucket`, which torch does not export to type checkers. DDP compares
# it with the annotation of a hook.
from torch._C._distributed_c10d import GradBucket as GradBucket
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

CommHook = tuple[Callable[..., Any], object]
"""A communication hook and its state."""

WRAPPER_MODULES = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_fsdp_wrapped_module",  # FSDP
        "_fpw_module",  # FSDP of fairscale and of early torch
        "_forward_module",  # Lightning Fabric
    }
)
"""Names under which wrappers hold the one module that they wrap.

They appear in the names of parameters, and a checkpoint must fit the model with and without a
wrapper. A wrapper that uses another name keeps it in the names of its parameters; a checkpoint then
fits only a model that is wrapped in the same way.
"""


def uncompiled(model: Any) -> Any:
    """Return the module that `torch.compile` has wrapped, or `model` itself if it has not.

    A compiled module prefixes the names of its parameters and hides that it holds a DDP model.
    torch has no public way back to the original.

    Where torch lacks ``_orig_mod``, a compiled model is taken as it is: `attach` refuses it with a
    TypeError, and `OuterSync` averages it as a model without DDP.
    """
    return getattr(model, "_orig_mod", model)


def comm_hooks(model: object) -> list[CommHook]:
    """Return the communication hooks that a DDP model remembers.

    DDP takes one hook. `attach` names the one that is there, and replaces one that a copied model
    has only inherited. torch lists hooks nowhere in public.

    Where torch lacks ``_comm_hooks``, the list is empty: DDP itself then refuses a second hook. A
    module of ``replicate`` has a list of its own until its first forward pass.
    """
    asked = getattr(state_of_replicate(model), "_comm_hook_args", [])
    return [*getattr(model, "_comm_hooks", []), *((hook, state) for (state, hook), _ in asked)]


def set_comm_hooks(model: DistributedDataParallel, hooks: Sequence[CommHook]) -> None:
    """Let a DDP model remember these hooks and no others; nothing is registered or removed.

    Where torch lacks ``_comm_hooks``, the list has no effect.
    """
    model._comm_hooks = list(hooks)


def state_of_replicate(model: object) -> Any:
    """Return what ``torch.distributed._composable.replicate`` keeps of a module; None without it.

    torch exports the function and not its state.
    """
    made = sys.modules.get("torch.distributed._composable.replicate")
    state_of = getattr(getattr(made, "replicate", None), "state", None)
    try:
        return None if state_of is None else state_of(model)
    except AssertionError:
        return None


def has_replicated(model: object) -> bool:
    """Return whether a module of ``replicate`` has made its DDP model, and takes no hook any more.

    Where torch lacks ``_ddp``, the answer is False: a hook that comes too late is then never
    called, and the notice of an idle sieve tells of it.
    """
    return hasattr(state_of_replicate(model), "_ddp")


def group_of_replicate(model: object) -> dist.ProcessGroup | None:
    """Return the process group of a module of ``torch.distributed._composable.replicate``.

    Such a module makes its DDP model in the first forward pass, and the sieve must average over the
    same ranks. torch keeps the group in the state of the module.

    Returns:
        None where the module was given none, which is the default group, where it is another kind
        of module, or where torch lacks ``_init_kwargs``.
    """
    given = getattr(state_of_replicate(model), "_init_kwargs", None) or {}
    group, mesh = given.get("process_group"), given.get("device_mesh")
    return mesh.get_group() if group is None and mesh is not None else group


def divides_by_ranks_with_inputs(model: object) -> bool:
    """Return whether DDP divides sums by the number of ranks that still have inputs.

    It does so inside ``model.join(divide_by_initial_world_size=False)``. The sieve divides by the
    number of all ranks and refuses to train there. torch tells neither in public.

    Where torch lacks ``_join_config`` or ``_divide_by_initial_world_size``, the answer is False,
    and averages inside such a join are divided by the number of all ranks.
    """
    joins = getattr(getattr(model, "_join_config", None), "enable", False)
    return bool(joins and not getattr(model, "_divide_by_initial_world_size", True))


def is_in_backward() -> bool:
    """Return whether autograd is running a backward pass in this thread.

    DDP also calls the hook outside of one: a rank that has run out of inputs in ``model.join()``
    answers the others with zeros, which do not show how gradients lie in memory. torch's own module
    trackers ask in the same way; it has no public function.

    Raises:
        AttributeError: torch lacks ``_current_graph_task_id``.
    """
    return torch._C._current_graph_task_id() >= 0


def process_groups_joined() -> int:
    """Return the number of process groups that this rank is a member of.

    torch names a group that only its members make by this number, and so makes no common group of
    ranks that differ in it. ``torch.distributed.get_pg_count`` counts groups that were destroyed as
    well.

    Raises:
        AttributeError: torch lacks ``_world.pg_names``.
    """
    return len(distributed_c10d._world.pg_names)


def default_store() -> distributed_c10d.Store:
    """Return the key-value store that `init_process_group` was given or has made.

    Ranks meet in it before the first collective, so that one that trains without gradsieve is named
    rather than waited for. torch has no public function for it.

    Raises:
        ValueError: there is no default process group.
        AttributeError: torch lacks ``_get_default_store``. Callers go on without a store, as where
            it does not answer; a rank without gradsieve then shows by the timeout.
    """
    return distributed_c10d._get_default_store()


def device_types(group: dist.ProcessGroup) -> set[str]:
    """Return the types of devices that a group's backends take tensors on, such as {"cpu", "cuda"}.

    Small collectives must choose a device that the group takes. torch uses the same property for
    its own object collectives and has no public one.

    Raises:
        AttributeError: torch lacks ``ProcessGroup._device_types``.
    """
    return {device.type for device in group._device_types}


def timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Return the timeout of a group's collectives.

    A group that is made for gradsieve's own collectives takes over the timeout that the user chose.
    torch sets timeouts in public and reads them nowhere.

    Returns:
        None where the backend has no such option or torch lacks ``_get_backend`` or ``_timeout``.
        `torch.distributed.new_group` then takes torch's default.
    """
    for name in ("cpu", "cuda"):
        try:
            options = group._get_backend(torch.device(name)).options
        except (RuntimeError, AttributeError):
            continue
        timeout = getattr(options, "_timeout", None)
        if isinstance(timeout, timedelta):
            return timeout
    return None


def is_flat_parameter(parameter: object) -> bool:
    """Return whether the parameter is one into which FullyShardedDataParallel has packed several.

    It holds a part of the packed memory, whose place differs from rank to rank, and torch gives it
    no class of its own.

    Where torch lacks ``_is_flat_param``, it is taken as any parameter.
    """
    return bool(getattr(parameter, "_is_flat_param", False))


def names_of_root_mesh(mesh: Any) -> tuple[str, ...]:
    """Return the names of the dimensions of the device mesh that `mesh` was cut out of.

    A refusal names the dimension to use instead. torch has no public way from ``mesh["shard"]``
    back to the mesh.

    Where torch lacks ``_get_root_mesh`` or the dimensions have no names, the tuple is empty, and
    the refusal shows how to make a mesh.
    """
    root = getattr(mesh, "_get_root_mesh", lambda: mesh)()
    return tuple(root.mesh_dim_names or ())
