"""Between DDP and the sieve: takes the buckets over, gives futures of averages."""

# DDP compares the hook's annotations with the types themselves: they must not become strings.
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.codec import Values
from gradsieve.dispatch import dispatch
from gradsieve.errors import SieveError
from gradsieve.loss_scale import Scaler
from gradsieve.requirements import require_ddp
from gradsieve.route import Exchange
from gradsieve.runtime.torch_private import GradBucket, comm_hooks, set_comm_hooks
from gradsieve.state import SieveState
from gradsieve.thresholds import Threshold


def attach(
    model: DistributedDataParallel,
    *,
    threshold: Threshold | None = None,
    values: Values = "levels",
    exchange: Exchange | None = None,
    node_size: int | None = None,
    rotation: int = 0,
    error_feedback: bool = True,
    min_numel: int | None = None,
    start_step: int = 0,
    ramp_steps: int = 0,
    scaler: Scaler | None = None,
) -> SieveState:
    """Put the sieve between the gradients of a DDP model and the network.

    Call it once, after DDP and before the first step, in the same way on every rank. The arguments
    are those of `SieveState`.

    Returns:
        The state: records of each step, residuals, what to save in a checkpoint.

    Raises:
        TypeError: `model` is not a DistributedDataParallel.
        SieveError: the model has a communication hook already, a parameter that is trained has
            sparse gradients or a dtype that the sieve does not take, or torch is too old.
        ValueError: a number is out of range.
    """
    require_ddp(model)
    require_no_hook(model)
    state = SieveState(
        threshold,
        values=values,
        exchange=exchange,
        node_size=node_size,
        rotation=rotation,
        error_feedback=error_feedback,
        min_numel=min_numel,
        start_step=start_step,
        ramp_steps=ramp_steps,
        scaler=scaler,
        process_group=model.process_group,
    )
    state.bind(model)
    drop_copies(model)
    try:
        model.register_comm_hook(state, sieve_hook)
    except RuntimeError as error:
        raise SieveError(f"DDP did not take the hook: {error}") from error
    return state


def require_no_hook(model: nn.Module) -> None:
    hooks = [entry for entry in comm_hooks(model) if not is_copy(entry[1])]
    if hooks:
        name = getattr(hooks[0][0], "__name__", repr(hooks[0][0]))
        raise SieveError(
            f"the model has the communication hook {name} already, and DDP takes one; attach "
            "gradsieve once, and no other hook beside it"
        )


def is_copy(state: object) -> bool:
    """A copied model remembers a copy of the original's state, and has no hook."""
    return isinstance(state, SieveState) and state.copied is not None


def drop_copies(model: DistributedDataParallel) -> None:
    """Each holds residuals as large as the model, which the new state does not take over."""
    set_comm_hooks(model, [entry for entry in comm_hooks(model) if not is_copy(entry[1])])


def sieve_hook(state: SieveState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DDP communication hook: replace a bucket of gradients by the average of the ranks' survivors.

    For tools that register a state and a hook themselves; others call `attach`.
    """
    if bucket.index() == 0:
        state.begin_step(bucket)
    state.follow_layout(bucket)
    future = dispatch(state, bucket)
    if bucket.is_last():
        state.end_step()
    return future
