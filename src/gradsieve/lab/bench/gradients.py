"""Gradients of the workloads as they are after some steps of training."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from gradsieve.lab.workloads.workload import cross_entropy, load_workload

STEPS = {"mnist_cnn": 100, "mlp": 40, "gpt": 20}
SMALLEST = 100_000
"""The number of elements below which a parameter is left out."""


def recorded_gradients(workload: str, seed: int = 0) -> dict[str, Tensor]:
    """Train on one rank and return the last step's gradients by name (float32, parameters' shapes).

    Raises:
        ValueError: there is no such workload, or it has small parameters only.
    """
    chosen = load_workload(workload)
    torch.manual_seed(seed)
    model = chosen.make_model()
    optimizer = chosen.make_optimizer(model, chosen.learning_rate)
    for inputs, targets in islice(chosen.batches(0, 1, seed), STEPS.get(chosen.task, 20)):
        optimizer.zero_grad()
        loss: Tensor = cross_entropy(model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    large = {
        name: parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.numel() >= SMALLEST and parameter.grad.any()
    }
    if not large:
        raise ValueError(
            f"{workload} has no parameter of {SMALLEST:,} elements or more with a gradient"
        )
    return large


def sources(names: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield Laplace numbers at uniform positions, then the gradients of each workload."""
    yield "uniform", {"laplace": laplace(2**22)}
    for name in names:
        yield name, recorded_gradients(name)


def laplace(numel: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.empty(numel, dtype=torch.float32, device="cpu")
    magnitudes.exponential_(generator=generator)
    signs = torch.randint(0, 2, (numel,), generator=generator, dtype=torch.int64, device="cpu")
    signs.mul_(2).sub_(1)
    return magnitudes * signs
