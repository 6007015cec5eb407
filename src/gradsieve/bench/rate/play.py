"""One training run, its ranks one after the other in this process."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from gradsieve.bench.rate.compressors import make_compressor
from gradsieve.workloads.workload import cross_entropy, load_workload

MEASURED_AT = (0.25, 0.5, 0.75, 1.0)
"""Shares of the steps after which quality is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What decides a run's result, on one version of Python and torch."""

    workload: str
    method: str
    learning_rate: float
    seed: int
    steps: int
    ranks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Setting):
    bits_per_parameter: float
    """A rank and step, all of training."""
    quality: float
    """The workload's metric after the last step."""
    curve: list[list[float]]
    """Steps done and the metric then."""
    seconds: float
    torch: str


def play(setting: Setting, watch: Callable[[int, float], None] = lambda step, loss: None) -> Run:
    """Train; `watch` hears of each step and the first rank's loss.

    Raises:
        ValueError: no such workload or method.
    """
    start = time.perf_counter()
    workload = load_workload(setting.workload)
    torch.manual_seed(setting.seed)
    model = workload.make_model()
    parameters = list(model.parameters())
    optimizer = workload.make_optimizer(model, setting.learning_rate)
    schedule = workload.make_schedule(optimizer, setting.steps)
    compressor = make_compressor(setting.method, parameters, setting.ranks)
    batches = [workload.batches(r, setting.ranks, setting.seed) for r in range(setting.ranks)]
    measured = {max(1, round(share * setting.steps)) for share in MEASURED_AT}
    bits, curve = 0.0, []
    for step in range(1, setting.steps + 1):
        losses, gradients = zip(*(backward(model, *next(own)) for own in batches), strict=True)
        averages, sent = compressor.average(gradients)
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.grad = average
        optimizer.step()
        schedule.step()
        bits += sent
        watch(step, losses[0])
        if step in measured:
            curve.append([step, workload.metric(model, 0, 1).mean])
    numel = sum(parameter.numel() for parameter in parameters)
    return Run(
        **asdict(setting),
        bits_per_parameter=bits / numel / setting.steps,
        quality=curve[-1][1],
        curve=curve,
        seconds=time.perf_counter() - start,
        torch=torch.__version__,
    )


def backward(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, list[Tensor]]:
    """The loss of one rank's batch, and its gradients."""
    model.zero_grad(set_to_none=True)
    loss = cross_entropy(model, inputs, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.detach() for p in model.parameters() if p.grad is not None]
    return loss.item(), gradients
