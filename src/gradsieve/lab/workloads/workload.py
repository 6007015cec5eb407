"""What every workload offers, and the table of all."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

WORKLOADS = {
    "mnist_cnn": "gradsieve.lab.workloads.mnist_cnn:MNIST_CNN",
    "mlp": "gradsieve.lab.workloads.mlp:MLP",
    "gpt": "gradsieve.lab.workloads.gpt:GPT",
    "gpt-small": "gradsieve.lab.workloads.gpt:GPT_SMALL",
}


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 1.0)


def nothing_missing() -> None:
    """The workload needs nothing but a Python installation."""


class Judged(NamedTuple):
    """A mean over samples, of which a rank may have seen a share."""

    total: float
    samples: int

    @property
    def mean(self) -> float:
        return self.total / self.samples


def no_requirement() -> None:
    """Every supported torch has the optimizer."""


@dataclass(frozen=True, slots=True)
class OtherOptimizer:
    """An optimizer that a workload can be trained with instead of its own."""

    make: Callable[[nn.Module, float], Optimizer]
    learning_rate: float
    """The rate of runs that name none."""
    require: Callable[[], None] = no_requirement
    """Raises ValueError where this torch does not have the optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model, its data, its optimizer and how it is judged."""

    name: str
    """The text that loads it, "gpt-small" or "gpt-small:optimizer=muon"."""
    make_model: Callable[[], nn.Module]
    """Weights are drawn from torch's global generator."""
    make_optimizer: Callable[[nn.Module, float], Optimizer]
    """Takes the model and a learning rate; gradients are not clipped."""
    learning_rate: float
    optimizer: str = "own"
    """The word for the optimizer."""
    other_optimizers: Mapping[str, OtherOptimizer] = field(default_factory=dict)
    make_schedule: Callable[[Optimizer, int], LRScheduler] = constant
    """Takes the optimizer and a number of steps; its `step()` is called after the optimizer's."""
    batches: Callable[[int, int, int], Iterator[tuple[Tensor, Tensor]]]
    """Takes rank, world size and seed; yields endless inputs and targets (int64 classes)."""
    require_data: Callable[[], object] = nothing_missing
    """Raises DataError where the data is not on this machine and cannot be had."""
    metric: Callable[[nn.Module, int, int], Judged]
    """Judges a model on a rank's share (rank, world size) of data that no rank trains on."""
    metric_name: str
    higher_is_better: bool

    @property
    def task(self) -> str:
        """The model and its data, whatever the optimizer: "gpt-small"."""
        return task_of(self.name)


def task_of(name: str) -> str:
    """Return what stands before the options of a workload."""
    return name.partition(":")[0]


def load_workload(text: str) -> Workload:
    """Import one workload and no other.

    Args:
        text: a name, "gpt-small", perhaps with an optimizer, "gpt-small:optimizer=muon". With its
            own optimizer it is the workload without options.

    Raises:
        ValueError: there is none of that name, it has no such option, or this torch does not have
            the optimizer.
    """
    name, colon, options = text.partition(":")
    require_workload(name)
    module, _, attribute = WORKLOADS[name].partition(":")
    workload = cast(Workload, getattr(import_module(module), attribute))
    return with_options(workload, options) if colon else workload


def with_options(workload: Workload, options: str) -> Workload:
    """Return the workload with an optimizer, "optimizer=muon". Raises ValueError."""
    key, _, word = options.partition("=")
    own, others = workload.optimizer, workload.other_optimizers
    if key != "optimizer" or word not in (own, *others):
        words = [f"optimizer={own} (its own)", *(f"optimizer={other}" for other in others)]
        raise ValueError(
            f"{workload.name!r} has no option {options!r}; write {workload.name}:OPTION with "
            f"{' or '.join(words)}"
        )
    if word == own:
        return workload
    other = others[word]
    other.require()
    return replace(
        workload,
        name=f"{workload.name}:{options}",
        make_optimizer=other.make,
        learning_rate=other.learning_rate,
        optimizer=word,
        other_optimizers={},
    )


def require_workload(name: str) -> None:
    """Raise ValueError where there is none of that name."""
    if name not in WORKLOADS:
        raise ValueError(f"there is no workload {name!r}; choose from {', '.join(WORKLOADS)}")


def require_rank(rank: int, world_size: int) -> None:
    """Raise ValueError where there is no such rank."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 to {world_size - 1} (world size - 1), not {rank}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Put the model into evaluation mode for the block, which gets the model's device."""
    was_training = model.training
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        model.train(was_training)


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the training loss of every workload: a scalar with its graph, in nats a target."""
    logits: Tensor = model(inputs)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
