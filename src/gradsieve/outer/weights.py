"""The weights of the last outer step, which all ranks share, and the optimizer that moves them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from gradsieve.outer.fragments import PseudoGradients, buckets_of, split_alike

OuterOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
LEARNING_RATE, MOMENTUM = 0.7, 0.9
"""DiLoCo's (Douillard et al. 2023, arXiv 2311.08105, section 3)."""


def nesterov(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)


@dataclass(frozen=True, slots=True)
class Flight:
    """The tensors of an exchange, without the ranks: played ranks have such too."""

    fragment: int
    buckets: list[PseudoGradients]
    """What this rank has moved; then, in the same place, the average of the ranks."""
    departed: list[Tensor]
    """The rank's own weights when it began; none where no inner step runs meanwhile."""


class OuterWeights:
    """
    Args:
        inner: the parameters that a rank trains itself, by name.
        optimizer: makes the outer optimizer of the outer weights.
        fragments: that take turns.
        device: of outer weights, momentum and pseudo-gradients; the parameter's own if None.

    Raises:
        TypeError: `optimizer` makes no torch optimizer.
        ValueError: there is nothing to train, or less than there are to be fragments; the optimizer
            is not one of the outer weights.
    """

    def __init__(
        self,
        inner: Sequence[tuple[str, nn.Parameter]],
        optimizer: OuterOptimizer = nesterov,
        fragments: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if not inner:
            raise ValueError("the model has no parameters that are trained")
        self.inner = [parameter for _, parameter in inner]
        self.outer = [copied(parameter, device) for parameter in self.inner]
        self.names = [name for name, _ in inner]
        self.optimizer = made_by(optimizer, self.outer)
        self.parts = split_alike([parameter.numel() for parameter in self.inner], fragments)
        self.numel = sum(parameter.numel() for parameter in self.inner)

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The outer weights."""
        return list(zip(self.names, self.outer, strict=True))

    @torch.no_grad()
    def begin(self, fragment: int, *, goes_on: bool) -> Flight:
        """The pseudo-gradients of a fragment: outer weights - weights (arXiv 2311.08105, line 10 of
        algorithm 1).

        Args:
            goes_on: inner steps will move the weights before `end`.
        """
        part = self.parts[fragment]
        inner = [self.inner[place] for place in part]
        buckets = buckets_of([self.outer[place] for place in part])
        moved = [gradient for bucket in buckets for gradient in bucket.shaped()]
        outer = [parameter for bucket in buckets for parameter in bucket.outer]
        for gradient, weights, before in zip(moved, inner, outer, strict=True):
            gradient.copy_(weights)
            # Rounded as the weights were: what rounding took is no progress.
            torch.sub(before.to(weights.dtype).float(), gradient, out=gradient)
        departed = [weights.detach().clone() for weights in inner] if goes_on else []
        return Flight(fragment, buckets, departed)

    def end(self, flight: Flight) -> None:
        """Step the outer optimizer on the averages, and take its weights over.

        What inner steps have added since `begin` stays, on this rank alone, and is a part of its
        next pseudo-gradient: weights = outer weights + (weights - weights then).
        """
        part = self.parts[flight.fragment]
        averages = [gradient for bucket in flight.buckets for gradient in bucket.shaped()]
        for place, average in zip(part, averages, strict=True):
            self.outer[place].grad = average
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for number, place in enumerate(part):
                weights, outer = self.inner[place], self.outer[place].to(self.inner[place].device)
                if flight.departed:
                    outer = outer + (weights.float() - flight.departed[number].float())
                weights.copy_(outer)


def made_by(make: OuterOptimizer, weights: Sequence[nn.Parameter]) -> Optimizer:
    optimizer = make(weights) if callable(make) else make
    if not callable(make) or not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer is a function that makes a torch optimizer from the outer weights, as "
            f"`lambda weights: torch.optim.SGD(weights, lr=1.0)`; found {optimizer!r}"
        )
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if held != {id(weight) for weight in weights}:
        raise ValueError(
            "the outer optimizer holds other parameters than the outer weights that it was given; "
            "make it from the function's argument, not from the model's parameters"
        )
    return optimizer


def copied(parameter: Tensor, device: torch.device | None) -> nn.Parameter:
    """In float32, laid out in memory as `parameter`."""
    with torch.no_grad():
        empty = torch.empty_like(parameter, dtype=torch.float32, device=device)
        return nn.Parameter(empty.copy_(parameter))
