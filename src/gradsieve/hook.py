"""The way of one bucket: select, encode, exchange, decode."""

# DDP compares the hook's annotations with the types themselves: they must not become strings.
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from gradsieve.averaging import average_into
from gradsieve.codec import (
    Kind,
    Section,
    Values,
    decode_frame,
    empty_section,
    encode_frame,
    pruned_section,
    whole_section,
)
from gradsieve.codec.errors import refuse
from gradsieve.errors import SieveError
from gradsieve.parameters import ParameterState
from gradsieve.rotation import Rotation
from gradsieve.sieve import select
from gradsieve.state import ROTATION_BLOCK, SieveState
from gradsieve.thresholds import Threshold


def attach(
    model: DistributedDataParallel,
    *,
    threshold: Threshold | None = None,
    values: Values = "levels",
    rotation: int = ROTATION_BLOCK,
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
    if state.plain:
        return all_reduce(state, bucket)
    tally = state.tally
    sections = sieve_gradients(state, parameters, bucket.gradients())
    with tally.timed("encode"):
        layout = state.layout(parameters)
        nonfinite = tally.nonfinite > 0
        frame = encode_frame(sections, layout=layout, step=state.step, nonfinite=nonfinite)
        tally.frame_bytes += frame.numel()
    buffer = bucket.buffer()
    future = future_on(buffer.device)
    threads = torch.get_num_threads()
    state.worker.submit(
        lambda: future.set_result(exchange(state, frame, layout, parameters, buffer, threads))
    )
    if bucket.is_last():
        state.end_step()
    return future


def sieve_gradients(
    state: SieveState, parameters: Sequence[ParameterState], gradients: Sequence[Tensor]
) -> list[Section]:
    sections: list[Section] = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # As it lies in the bucket, whatever the parameter's memory format.
        flat = gradient.view(-1).float()
        make = send_whole if parameter.whole else send_survivors
        sections.append(make(state, parameter, flat))
        state.tally.elements += parameter.numel
        state.tally.sent_elements += sections[-1].count
    return sections


def send_whole(state: SieveState, parameter: ParameterState, flat: Tensor) -> Section:
    with state.tally.timed("encode"):
        values = flat.cpu().numpy()
        state.tally.nonfinite += int(np.count_nonzero(~np.isfinite(values)))
        return whole_section(values, state.values)


def send_survivors(state: SieveState, parameter: ParameterState, flat: Tensor) -> Section:
    tally, left = state.tally, parameter.flat_residual()
    if state.holds(flat):
        return empty_section(parameter.numel)
    with tally.timed("rotate"):
        if parameter.rotation is not None:
            flat = rotate(state, parameter, parameter.rotation, flat)
    with tally.timed("select"):
        threshold = state.steering.next(parameter, flat, left, state.step)
        indices, values, moments = select(flat, left, threshold, out=state.workspace)
        if not state.error_feedback:
            left.zero_()
    with tally.timed("encode"):
        section = pruned_section(
            indices.cpu().numpy(),
            values.cpu().numpy(),
            parameter.numel,
            threshold,
            state.values,
            row=parameter.row,
            finite=moments.nonfinite == 0,
            residual=left.numpy() if state.error_feedback and left.is_cpu else None,
        )
        parameter.squared_remainder = section.squared_remainder
        if state.error_feedback and not left.is_cpu:
            parameter.squared_remainder = leave_remainder(left, indices, values, section)
    parameter.moments = moments
    state.sent.append((parameter, indices, values))
    tally.thresholds[parameter.name] = threshold
    tally.moments[parameter.name] = moments
    tally.nonfinite += moments.nonfinite
    return section


def rotate(
    state: SieveState, parameter: ParameterState, rotation: Rotation, flat: Tensor
) -> Tensor:
    """The coefficients of a gradient; one is NaN where the gradient is not finite.

    Every coefficient of a block would be: the residual would get nothing of what is finite.
    """
    if math.isfinite(float(flat.sum())):
        return rotation.coefficients(flat)
    finite = flat.isfinite()
    coefficients = rotation.coefficients(torch.where(finite, flat, 0.0))
    bad = flat.numel() - int(finite.sum())
    if bad:
        parameter.flat_residual()[0] += coefficients[0]
        coefficients[0] = math.nan
        # Selecting counts one.
        state.tally.nonfinite += bad - 1
    return coefficients


def leave_remainder(left: Tensor, indices: Tensor, values: Tensor, section: Section) -> float:
    """On a device: what a section does not carry of finite values stays in the residual.

    Returns:
        The sum of squares of what stays.
    """
    if section.kind is Kind.FLOAT32:
        return 0.0
    _, sent = section.survivors()
    remainder = values - torch.from_numpy(sent).to(left.device)
    left.index_copy_(0, indices.long(), remainder)
    return float(remainder.square().sum())


def exchange(
    state: SieveState,
    frame: Tensor,
    layout: int,
    parameters: list[ParameterState],
    buffer: Tensor,
    threads: int,
) -> Tensor:
    """In the communication thread: exchange and decode one bucket while others are computed."""
    tally, step = state.tally, state.step % 2**32
    with tally.timed("exchange"):
        arrived = state.exchange.exchange(frame)
    numels = [parameter.numel for parameter in parameters]
    with tally.timed("decode"):
        frames = [
            decode_frame(other, layout=layout, numels=numels, own=other is frame)
            for other in arrived
        ]
        for other in frames:
            if other.step != step:
                refuse("step", f"{other.step}, this rank is at {step}")
        average_into(buffer, frames, [parameter.rotation for parameter in parameters], threads)
    # A sum of finite float32 may leave float16's range, on all ranks alike.
    overflowed = buffer.dtype is torch.float16 and not bool(buffer.isfinite().all())
    tally.nonfinite_anywhere |= overflowed or any(other.nonfinite for other in frames)
    return buffer


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
