"""The way of one bucket: select, encode, exchange, decode."""

# DDP compares the hook's annotations with the types themselves: they must not become strings.
import numpy as np
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from gradsieve.codec import Frame, Section, decode_frame, encode_frame
from gradsieve.codec.add import add_at
from gradsieve.codec.frame import require
from gradsieve.errors import SieveError
from gradsieve.parameters import ParameterState
from gradsieve.sieve import select
from gradsieve.state import SieveState
from gradsieve.thresholds import Threshold


def attach(
    model: DistributedDataParallel,
    *,
    threshold: Threshold | None = None,
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
    if state.plain:
        return all_reduce(state, bucket)
    tally = state.tally
    with tally.timed("select"):
        sections = select_bucket(state, parameters, bucket)
    with tally.timed("encode"):
        layout = state.layout(parameters)
        nonfinite = tally.nonfinite > 0
        frame = encode_frame(sections, layout=layout, step=state.step, nonfinite=nonfinite)
        tally.frame_bytes += frame.numel()
    buffer = bucket.buffer()
    future = future_on(buffer.device)
    numels = [parameter.numel for parameter in parameters]
    state.worker.submit(lambda: future.set_result(exchange(state, frame, layout, numels, buffer)))
    if bucket.is_last():
        state.end_step()
    return future


def select_bucket(
    state: SieveState, parameters: list[ParameterState], bucket: GradBucket
) -> list[Section]:
    sections = []
    for parameter, gradient in zip(parameters, bucket.gradients(), strict=True):
        # As it lies in the bucket, whatever the parameter's memory format.
        flat = gradient.view(-1).float()
        make = whole_section if parameter.whole else pruned_section
        sections.append(make(state, parameter, flat))
        state.tally.elements += parameter.numel
        state.tally.sent_elements += sections[-1].values.size
    return sections


def whole_section(state: SieveState, parameter: ParameterState, flat: Tensor) -> Section:
    values = flat.cpu().numpy()
    state.tally.nonfinite += int(np.count_nonzero(~np.isfinite(values)))
    return Section(parameter.numel, 0.0, values)


def pruned_section(state: SieveState, parameter: ParameterState, flat: Tensor) -> Section:
    left = parameter.flat_residual()
    if state.holds(flat):
        return Section(parameter.numel, 0.0, np.empty(0, np.float32), np.empty(0, np.int32))
    threshold = state.next_threshold(parameter, flat, left)
    indices, values, moments = select(flat, left, threshold, out=state.workspace)
    if not state.error_feedback:
        left.zero_()
    parameter.moments = moments
    state.sent.append((parameter, indices, values))
    state.tally.thresholds[parameter.name] = threshold
    state.tally.moments[parameter.name] = moments
    state.tally.nonfinite += moments.nonfinite
    return Section(parameter.numel, threshold, values.cpu().numpy(), indices.cpu().numpy())


def exchange(
    state: SieveState, frame: Tensor, layout: int, numels: list[int], buffer: Tensor
) -> Tensor:
    """In the communication thread: exchange and decode one bucket while others are computed."""
    tally, step = state.tally, state.step % 2**32
    with tally.timed("exchange"):
        arrived = state.exchange.exchange(frame)
    with tally.timed("decode"):
        frames = [
            decode_frame(other, layout=layout, numels=numels, own=other is frame)
            for other in arrived
        ]
        for other in frames:
            require(other.step == step, "step", f"{other.step}, this rank is at {step}")
        average_into(buffer, frames)
    # A sum of finite float32 may leave float16's range, on all ranks alike.
    overflowed = buffer.dtype is torch.float16 and not bool(buffer.isfinite().all())
    tally.nonfinite_anywhere |= overflowed or any(other.nonfinite for other in frames)
    return buffer


def average_into(buffer: Tensor, frames: list[Frame]) -> None:
    """Add the frames in rank order, each value divided by their number."""
    total = (
        buffer if buffer.dtype is torch.float32 else torch.empty_like(buffer, dtype=torch.float32)
    )
    total.zero_()
    factor = 1.0 / len(frames)
    for frame in frames:
        start = 0
        for section in frame.sections:
            add_section(total[start : start + section.numel], section, factor)
            start += section.numel
    if total is not buffer:
        buffer.copy_(total)


def add_section(total: Tensor, section: Section, factor: float) -> None:
    values = torch.from_numpy(section.values)
    if section.indices is None:
        # Not add_'s alpha: whether it rounds once or twice depends on the processor.
        total.add_(values.mul(factor).to(total.device))
    elif total.device.type == "cpu":
        add_at(total.numpy(), section.indices, section.values, np.float32(factor))
    else:
        indices = torch.from_numpy(section.indices).to(total.device)
        total.index_add_(0, indices, values.to(total.device), alpha=factor)


def all_reduce(state: SieveState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    tally, buffer = state.tally, bucket.buffer()
    tally.plain = True
    tally.elements += buffer.numel()
    tally.sent_elements += buffer.numel()
    tally.frame_bytes += buffer.numel() * buffer.element_size()
    future = allreduce_hook(state.group, bucket)
    if bucket.is_last():
        state.end_step()
    return future


def future_on(device: torch.device) -> torch.futures.Future[Tensor]:
    """A future whose readers wait for the device's work as well."""
    return torch.futures.Future(devices=None if device.type == "cpu" else [device])
