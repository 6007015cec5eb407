"""A bucket goes on its way: to the communication thread, or whole to an all-reduce."""

from typing import cast

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    fp16_compress_hook,
)

from gradsieve.bucket import Bucket
from gradsieve.delivery import deliver
from gradsieve.layout import BucketLayout
from gradsieve.nonfinite import note_nonfinite
from gradsieve.parameters import ParameterState
from gradsieve.runtime.devices import Handover
from gradsieve.runtime.torch_private import GradBucket
from gradsieve.state import SieveState
from gradsieve.whole import WholeGroup


def dispatch(state: SieveState, bucket: Bucket) -> torch.futures.Future[Tensor]:
    """Exchange a bucket between `SieveState.begin_step` and `end_step`, which waits for it.

    Returns:
        The bucket's buffer, when it holds the average of the ranks' survivors.
    """
    parameters = state.meet(bucket)
    if state.observers:
        gradients = bucket.gradients()
        for observer in state.observers:
            observer.see_gradients(state.step, parameters, gradients)
    if state.plain or state.route.is_dense:
        return send_all(state, bucket, parameters)
    state.tally.buckets += 1
    plan, buffer = state.plan(parameters), bucket.buffer()
    future, asked = future_on(buffer.device), Handover(buffer.device)

    def job() -> None:
        with asked.taken_over():
            future.set_result(deliver(state, plan, buffer))

    state.worker.submit(job)
    return future


def send_all(
    state: SieveState, bucket: Bucket, parameters: list[ParameterState]
) -> torch.futures.Future[Tensor]:
    """All-reduce the bucket; in a dense exchange with what the residuals hold."""
    tally, buffer = state.tally, bucket.buffer()
    half = state.route.way == "dense-fp16" and not state.plain
    tally.plain = True
    tally.elements += buffer.numel()
    tally.sent_elements += buffer.numel()
    if not state.route.is_alone:
        tally.frame_bytes += buffer.numel() * (2 if half else buffer.element_size())
    named = [(parameter.name, parameter.numel) for parameter in parameters]
    note_nonfinite(tally, named or described(bucket.parameters()), buffer)
    if not state.plain:
        give_residuals(state, state.plans.bucket(parameters), buffer)
    reduce = fp16_compress_hook if half else allreduce_hook
    # All that they ask of a bucket is its buffer.
    future = reduce(state.members.dense_group, cast(GradBucket, bucket))
    state.unfinished.append(future)
    return future


def described(parameters: list[Tensor]) -> list[tuple[str, int]]:
    """Where there are no names yet."""
    return [(f"a parameter of shape {list(p.shape)}", p.numel()) for p in parameters]


def give_residuals(state: SieveState, layout: BucketLayout, buffer: Tensor) -> None:
    state.changes.touch(layout.units)
    scale = state.loss_scale.now
    for number, unit in enumerate(layout.units):
        flat = layout.take(buffer, number)
        if isinstance(unit, WholeGroup):
            if state.error_feedback:
                given = unit.give(
                    flat,
                    scale=scale,
                    may_be_unused=state.may_be_unused,
                    keeps_gradient=False,
                )
                layout.put(buffer, number, given)
        elif not unit.is_empty and not state.holds(flat):
            unit.give_residuals(flat, state.members.group.size(), scale)


def future_on(device: torch.device) -> torch.futures.Future[Tensor]:
    """A future whose readers wait for the device's work as well."""
    return torch.futures.Future(devices=None if device.type == "cpu" else [device])
