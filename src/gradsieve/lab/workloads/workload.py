"""What every workload offers, and where each is found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    """What every Python installation has."""


class Judged(NamedTuple):
    """A mean over samples, of which a rank may have seen a share."""

    total: float
    samples: int

    @property
    def mean(self) -> float:
        return self.total / self.samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model, its data and how it is judged."""

    name: str
    make_model: Callable[[], nn.Module]
    """Weights are drawn from torch's global generator."""
    make_optimizer: Callable[[nn.Module, float], Optimizer]
    """With a learning rate; the gradients are left as they are (no clipping)."""
    learning_rate: float
    make_schedule: Callable[[Optimizer, int], LRScheduler] = constant
    """Of the learning rate, for a number of steps; its `step()` follows the optimizer's."""
    batches: Callable[[int, int, int], Iterator[tuple[Tensor, Tensor]]]
    """Rank, world size and seed to endless inputs and targets (int64 classes)."""
    require_data: Callable[[], object] = nothing_missing
    """Raise DataError where the data is not on this machine and cannot be had."""
    metric: Callable[[nn.Module, int, int], Judged]
    """Of a model, on a rank's share (rank, world size) of data that no rank trains on."""
    metric_name: str
    higher_is_better: bool


def load_workload(name: str) -> Workload:
    """Import one workload and no other.

    Raises:
        ValueError: there is none of that name.
    """
    require_workload(name)
    module, _, attribute = WORKLOADS[name].partition(":")
    return cast(Workload, getattr(import_module(module), attribute))


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
    """Evaluation mode, and the model's device; the training flag is afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        model.train(was_training)


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The training loss of every workload, in nats a target: a scalar with its graph."""
    logits: Tensor = model(inputs)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
