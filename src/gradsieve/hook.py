"""Between DDP and the sieve: takes the buckets over, gives futures of averages."""

# DDP compares the hook's annotations with the types themselves: they must not become strings.
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from gradsieve.codec import Values
from gradsieve.delivery import deliver
from gradsieve.devices import Handover
from gradsieve.errors import SieveError
from gradsieve.parameters import ParameterState
from gradsieve.route import Exchange
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
    min_numel: int = 2048,
    start_step: int = 0,
    ramp_steps: int = 0,
) -> SieveState:
    """Put the sieve between the gradients of a DDP model and the network.

    Call it once, after DDP and before the first step, in the same way on every rank. The arguments
    are those of `SieveState`.

    Returns:
        The state: records of each step, residuals, what to save in a checkpoint.

    Raises:
        TypeError: `model` is not a DistributedDataParallel.
        SieveError: the model has a communication hook already, or torch is too old.
        ValueError: a number is out of range.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"attach takes a torch.nn.parallel.DistributedDataParallel, got "
            f"{type(model).__name__}; wrap the model first: model = DDP(model)"
        )
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
        process_group=model.process_group,
    )
    state.bind(model)
    try:
        model.register_comm_hook(state, sieve_hook)
    except RuntimeError as error:
        raise SieveError(f"DDP did not take the hook: {error}") from error
    return state


def require_no_hook(model: nn.Module) -> None:
    hooks = getattr(model, "_comm_hooks", [])
    if hooks:
        name = getattr(hooks[0][0], "__name__", repr(hooks[0][0]))
        raise SieveError(
            f"the model has the communication hook {name} already, and DDP takes one; attach "
            "gradsieve once, and no other hook beside it"
        )


def sieve_hook(state: SieveState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DDP communication hook: replace a bucket of gradients by the average of the ranks' survivors.

    For tools that register a state and a hook themselves; others call `attach`.
    """
    parameters = state.begin(bucket)
    for observer in state.observers:
        observer.see_gradients(state.step, parameters, bucket.gradients())
    if state.plain or state.route.is_dense:
        return send_all(state, bucket, parameters)
    state.tally.buckets += 1
    plan, gradients, buffer = state.plan(parameters), bucket.gradients(), bucket.buffer()
    future, asked = future_on(buffer.device), Handover(buffer.device)

    def job() -> None:
        with asked.taken_over():
            future.set_result(deliver(state, plan, gradients, buffer))

    state.worker.submit(job)
    if bucket.is_last():
        state.end_step()
    return future


def send_all(
    state: SieveState, bucket: GradBucket, parameters: list[ParameterState]
) -> torch.futures.Future[Tensor]:
    """All-reduce the bucket; in a dense exchange with what the residuals hold."""
    tally, buffer = state.tally, bucket.buffer()
    half = state.route.way == "dense-fp16" and not state.plain
    tally.plain = True
    tally.elements += buffer.numel()
    tally.sent_elements += buffer.numel()
    tally.frame_bytes += buffer.numel() * (2 if half else buffer.element_size())
    if not state.plain:
        give_residuals(state, bucket, parameters)
    future = (fp16_compress_hook if half else allreduce_hook)(state.members.group, bucket)
    if not state.plain:
        state.unfinished.append(future)
    if bucket.is_last():
        state.end_step()
    return future


def give_residuals(state: SieveState, bucket: GradBucket, parameters: list[ParameterState]) -> None:
    for parameter, gradient in zip(parameters, bucket.gradients(), strict=True):
        flat = gradient.view(-1)
        if not parameter.is_empty and not state.holds(flat):
            parameter.give_residuals(flat, state.members.group.size())
            state.tally.gives_residuals = True


def future_on(device: torch.device) -> torch.futures.Future[Tensor]:
    """A future whose readers wait for the device's work as well."""
    return torch.futures.Future(devices=None if device.type == "cpu" else [device])
