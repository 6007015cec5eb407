"""How large the gradients of the last steps were: of each parameter and of the whole model."""

import math

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.sieve import Moments, measure

MEMORY = 0.9
"""The weight of what was before, in each step's geometric mean of it and the step.

Geometric: large gradients (a burst, the first steps) would lift an arithmetic mean for many steps,
and little would be sent in them.
"""


class GradientSizes:
    """Mean squares over steps: the model's here, a parameter's in its state."""

    def __init__(self) -> None:
        self.mean_square: float | None = None
        """Of all elements of the model; None before the end of the first step."""
        self._step: list[tuple[ParameterState, int, float]] = []

    def add(self, parameter: ParameterState, numel: int, square_sum: float) -> None:
        """Take so many elements of a gradient, by the sum of their squares, into this step."""
        self._step.append((parameter, numel, square_sum))

    def end_step(self) -> None:
        """Zero gradients leave their means as they are, one that is not finite leaves all."""
        added = [(parameter, own, squares) for parameter, own, squares in self._step if squares]
        numel = sum(own for _, own, _ in self._step)
        self.drop_step()
        total = sum(squares for _, _, squares in added)
        if not total or not math.isfinite(total):
            return
        self.mean_square = followed(self.mean_square, total / numel)
        for parameter, own, squares in added:
            parameter.mean_square = followed(parameter.mean_square, squares / own)

    def drop_step(self) -> None:
        """Forget what was taken since the last step's end."""
        self._step = []

    def balanced(self, parameter: ParameterState, gradient: Tensor) -> Moments:
        """As of a gradient whose size is the geometric mean of the model's and the parameter's.

        Where the parameter's is not known yet, this step's `gradient` stands for it.
        """
        own = parameter.mean_square
        if own is None:
            own = measure(gradient).unsent_square_sum / max(1, gradient.numel())
        model = own if self.mean_square is None else self.mean_square
        return alike(parameter.numel, math.sqrt(math.sqrt(own) * math.sqrt(model)))


def followed(before: float | None, now: float) -> float:
    return now if before is None else before**MEMORY * now ** (1 - MEMORY)


def alike(numel: int, magnitude: float) -> Moments:
    """Of `numel` elements of one magnitude whose mean is 0."""
    return Moments(
        numel=numel,
        survivors=0,
        nonfinite=0,
        sum=0.0,
        unsent_sum=numel * magnitude,
        unsent_square_sum=numel * magnitude**2,
        survivor_sum=0.0,
        survivor_square_sum=0.0,
        gradient_square_sum=numel * magnitude**2,
        largest=magnitude,
    )
