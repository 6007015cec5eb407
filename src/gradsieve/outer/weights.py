"""The outer weights, which all ranks share, and the outer optimizer that moves them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradsieve.bucket.flat import FlatBucket, buckets_of
from gradsieve.bucket.shards import local
from gradsieve.outer.fragments import split_alike
from gradsieve.outer.nesterov import Nesterov
from gradsieve.saved.parameter_names import counterparts

OuterOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Unsent = Callable[[str], Tensor | None]
OWN_STATE = ("torch.optim", "gradsieve.")
"""The modules of optimizers that keep everything in their state."""


def nothing(name: str) -> None:
    """A rank keeps nothing in its weights."""


@dataclass(frozen=True, slots=True)
class Flight:
    """The tensors of an exchange. Benches that play ranks in one process use it, too."""

    fragment: int
    buckets: list[FlatBucket]
    """The pseudo-gradients of this rank, which the average of all ranks then overwrites."""
    departed: list[Tensor]
    """The weights of this rank at the beginning; empty if no inner step runs meanwhile."""


class OuterWeights:
    """A float32 copy of the weights of the last outer step, with its optimizer.

    Args:
        inner: the names and parameters that a rank trains itself. Where FSDP has cut a parameter
            into shards, the outer weights stand for the local shard.
        optimizer: a function that makes the outer optimizer from the outer weights.
        fragments: the number of fragments that take turns.
        device: the device of outer weights, momentum and pseudo-gradients; None for that of each
            parameter.

    Raises:
        TypeError: `optimizer` does not make a torch optimizer.
        ValueError: there are no parameters, fewer parameters than fragments, or the optimizer
            holds other parameters than the outer weights.
    """

    idle_notice: ClassVar[str] = (
        "OuterSync.step() was never called, so every rank trains alone. Call outer.step() after "
        "each optimizer.step()"
    )
    """What is said where an inner optimizer steps and nobody counts its steps."""

    def __init__(
        self,
        inner: Sequence[tuple[str, nn.Parameter]],
        optimizer: OuterOptimizer = Nesterov,
        fragments: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if not inner:
            raise ValueError("the model has no parameters that are trained")
        self.inner = [parameter for _, parameter in inner]
        self.outer = [copied(shard, device) for shard in self.shards()]
        self.names = [name for name, _ in inner]
        self.optimizer = made_by(optimizer, self.outer)
        # Sizes of whole parameters: all shards of one must be in the same fragment.
        self.parts = split_alike([parameter.numel() for parameter in self.inner], fragments)
        self.numel = sum(weights.numel() for weights in self.outer)
        self._starts: list[Tensor | None] = [None] * len(self.outer)
        """The weights from which this rank has trained on since the last exchange, where they are
        not the outer weights."""

    def shards(self) -> list[Tensor]:
        """Return what this rank trains of each parameter, in the same memory.

        Ask anew whenever it is used: FSDP may move a shard to other memory.
        """
        return [local(parameter) for parameter in self.inner]

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The names and outer weights."""
        return list(zip(self.names, self.outer, strict=True))

    def trains(self, parameter: Tensor) -> bool:
        """Return whether an optimizer of this parameter makes inner steps."""
        return any(parameter is own for own in self.inner)

    def require_fit(self, names: Sequence[str], weights: Mapping[str, Tensor]) -> Mapping[str, str]:
        """Return the saved name for each name of this model.

        Args:
            names: the names of the saved weights, in the order of their optimizer.

        Raises:
            ValueError: the saved weights are of another model.
        """
        found = counterparts(names, self.names)
        if [found[name] for name in self.names] != list(names):
            raise ValueError(
                "the saved state is of another model: its parameters come in another order"
            )
        for name, mine in self.named:
            if (saved := weights[found[name]]).shape != mine.shape:
                raise ValueError(
                    f"the saved state is of another model: parameter {name} is {list(mine.shape)}, "
                    f"the saved weights are {list(saved.shape)}"
                )
        return found

    @torch.no_grad()
    def begin(self, fragment: int, *, goes_on: bool) -> Flight:
        """Return the pseudo-gradients of a fragment: weights at its start - current weights.

        The formula is line 10 of algorithm 1 in arXiv 2311.08105.

        Args:
            goes_on: whether inner steps will move the weights before `end`.
        """
        part, shards = self.parts[fragment], self.shards()
        inner = [shards[place] for place in part]
        buckets = buckets_of([self.outer[place] for place in part])
        moved = [gradient for bucket in buckets for gradient in bucket.shaped()]
        for gradient, weights, place in zip(moved, inner, part, strict=True):
            gradient.copy_(weights)
            torch.sub(self.start(place), gradient, out=gradient)
        departed = [weights.clone() for weights in inner] if goes_on else []
        return Flight(fragment, buckets, departed)

    def start(self, place: int) -> Tensor:
        """Return the weights (float32) from which this rank has trained a parameter on.

        They are rounded as the weights were rounded, because rounding is no progress.
        """
        start = self._starts[place]
        return (self.outer[place] if start is None else start).to(self.inner[place].dtype).float()

    def end(self, flight: Flight, unsent: Unsent = nothing) -> None:
        """Step the outer optimizer by the averages, and train on from its weights.

        What inner steps have added since `begin` stays on this rank, and is a part of its next
        pseudo-gradient: weights = outer weights + (weights - weights at `begin`).

        Args:
            unsent: a function that takes the name of a parameter, and returns the part of this
                rank's pseudo-gradients that it has not sent yet (float32), or None. The rank keeps
                this progress in its weights: they start at outer weights - unsent.
        """
        part = self.parts[flight.fragment]
        averages = [gradient for bucket in flight.buckets for gradient in bucket.shaped()]
        for place, average in zip(part, averages, strict=True):
            self.outer[place].grad = average
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            shards = self.shards()
            for number, place in enumerate(part):
                self.hold(place, unsent(self.names[place]))
                weights, start = shards[place], self._starts[place]
                merged = (self.outer[place] if start is None else start).to(weights.device)
                if flight.departed:
                    merged = merged + (weights.float() - flight.departed[number].float())
                weights.copy_(merged)

    @torch.no_grad()
    def hold(self, place: int, unsent: Tensor | None) -> None:
        """Let a parameter start at outer weights - unsent. The weights themselves do not change."""
        outer = self.outer[place]
        self._starts[place] = None if unsent is None else outer - unsent.to(outer.device)

    @torch.no_grad()
    def settled(self, place: int) -> Tensor:
        """Return a parameter's weights (float32) without what this rank has not sent."""
        weights = local(self.inner[place]).detach().float()
        if not self.holds(place):
            return weights
        learned = weights - self.start(place).to(weights.device)
        return self.outer[place].to(weights.device) + learned

    @torch.no_grad()
    def settle(self) -> None:
        """Take what this rank has not sent out of its weights, so that all ranks have the same."""
        for place, weights in enumerate(self.shards()):
            if self.holds(place):
                weights.copy_(self.settled(place))
                self.hold(place, None)

    def holds(self, place: int) -> bool:
        """Return whether the weights of a parameter contain what this rank has not sent."""
        return self._starts[place] is not None

    @property
    def holding(self) -> list[str]:
        """The names of the parameters whose weights contain what this rank has not sent."""
        return [name for place, name in enumerate(self.names) if self.holds(place)]


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


def require_optimizer_fits(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Raise ValueError if the optimizer cannot load and use a saved state.

    A copy of the optimizer tries it.
    """
    trial = deepcopy(optimizer)
    try:
        trial.load_state_dict(deepcopy(dict(saved)))
        # A copy of another optimizer may share what it keeps beside its state.
        if type(optimizer).__module__.startswith(OWN_STATE):
            for group in trial.param_groups:
                for weights in group["params"]:
                    weights.grad = torch.zeros_like(weights)
            trial.step()
    except Exception as error:
        raise ValueError(
            f"the saved state cannot be loaded: optimizer does not fit this "
            f"{type(optimizer).__name__} ({type(error).__name__}: {error})"
        ) from error


def copied(parameter: Tensor, device: torch.device | None) -> nn.Parameter:
    """Return a float32 copy of `parameter`, with the same strides."""
    with torch.no_grad():
        empty = torch.empty_like(parameter, dtype=torch.float32, device=device)
        return nn.Parameter(empty.copy_(parameter))
