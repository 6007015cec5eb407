"""The default outer optimizer, whose momentum grows from nothing."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LEARNING_RATE, MOMENTUM = 0.7, 0.9
"""The values of DiLoCo (Douillard et al. 2023, arXiv 2311.08105, section 3)."""
RAMP = 3.0
"""The constant of Nesterov's schedule t / (t + 3), as in O'Donoghue and Candès 2012,
arXiv 1204.3982, section 2."""


class Nesterov(Optimizer):
    """SGD with a Nesterov momentum that grows with the steps taken.

    In step t, counted from 0 for each parameter, with the gradient g:

        mu = min(momentum, t / (t + ramp))
        v = mu v + g
        w = w - lr (g + mu v)

    A full momentum from the first step on would repeat the first pseudo-gradients, which are long
    and soon point elsewhere. `OuterSync` makes this optimizer if it is given none.

    Args:
        parameters: the outer weights, or groups of them.
        lr: the learning rate.
        momentum: the momentum at the end of the ramp; 0 for none.
        ramp: the number of steps until half of full momentum. 0 begins with `momentum` at once,
            which makes this `torch.optim.SGD` with ``nesterov=True``.

    Raises:
        ValueError: a number is out of range.

    Example:

        >>> import torch
        >>> import gradsieve as gs
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = gs.Nesterov([w], lr=1.0)
        >>> for _ in range(2):
        ...     w.grad = torch.ones(1)
        ...     optimizer.step()
        >>> w.item()  # -1, then -(1 + 1/4 * 5/4)
        -2.3125
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = LEARNING_RATE,
        momentum: float = MOMENTUM,
        ramp: float = RAMP,
    ) -> None:
        require_rates(lr, momentum, ramp)
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "ramp": ramp})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    advance(weights, weights.grad, self.state[weights], group)
        return loss


def require_rates(lr: float, momentum: float, ramp: float) -> None:
    """Raise ValueError where a number is out of range."""
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
    if not 0 <= ramp < math.inf:
        raise ValueError(f"ramp must be at least 0 and finite, got {ramp}")


def advance(
    weights: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, float]
) -> None:
    lr, momentum = group["lr"], momentum_at(state.get("step", 0), group)
    state["step"] = state.get("step", 0) + 1
    weights.add_(gradient, alpha=-lr)
    if not group["momentum"]:
        return
    velocity = state.get("momentum_buffer")
    if velocity is None:
        velocity = state["momentum_buffer"] = torch.zeros_like(weights)
    velocity.mul_(momentum).add_(gradient)
    weights.add_(velocity, alpha=-lr * momentum)


def momentum_at(step: int, group: Mapping[str, float]) -> float:
    if not group["ramp"]:
        return group["momentum"]
    return min(group["momentum"], step / (step + group["ramp"]))
