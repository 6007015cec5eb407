"""The size of the gradients in the last steps, which balanced thresholds follow."""

import math

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.sieve import Moments, measure

MEMORY = 0.9
"""Weight of the mean before, in its weighted geometric mean with a new step.

The mean is geometric because large gradients (a burst, the first steps) would lift an arithmetic
mean for many steps, in which little would be sent.
"""


class GradientSizes:
    """Mean squares over steps. That of the model is kept here, that of a parameter in its state."""

    def __init__(self) -> None:
        self.mean_square: float | None = None
        """Mean square of all elements of the model; None before the end of the first step."""
        self._step: list[tuple[ParameterState, int, float]] = []

    def add(self, parameter: ParameterState, numel: int, square_sum: float) -> None:
        """Add `numel` elements of a gradient, whose squares sum to `square_sum`, to this step."""
        self._step.append((parameter, numel, square_sum))

    def end_step(self) -> None:
        """Update the means by this step.

        A gradient of zeros leaves its own mean unchanged. One that is not finite leaves all means
        unchanged.
        """
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
        """Forget what was added since the last step ended."""
        self._step = []

    def balanced(self, parameter: ParameterState, gradient: Tensor) -> Moments:
        """Return the moments of a gradient of one magnitude, for a balanced threshold.

        The magnitude is the geometric mean of the root mean squares of the model and of the
        parameter. While that of the parameter is unknown, the one of `gradient` is taken.
        """
        own = parameter.mean_square
        if own is None:
            own = measure(gradient).unsent_square_sum / max(1, gradient.numel())
        model = own if self.mean_square is None else self.mean_square
        return alike(parameter.numel, math.sqrt(math.sqrt(own) * math.sqrt(model)))


def followed(before: float | None, now: float) -> float:
    return now if before is None else before**MEMORY * now ** (1 - MEMORY)


def alike(numel: int, magnitude: float) -> Moments:
    """Return the moments of `numel` elements of one magnitude whose mean is 0."""
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
