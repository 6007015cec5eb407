"""The size of the whole model's gradient over the last steps."""

import math

import torch
from torch import Tensor

from gradsieve.sieve import Moments

MEMORY = 0.9
"""The weight of what was before, in each step's geometric mean of it and the step.

Geometric: large gradients (a burst, the first steps) would lift an arithmetic mean for many steps,
and little would be sent in them.
"""


class ModelMoments:
    def __init__(self) -> None:
        self.mean_square: float | None = None
        """Of all elements; None before the end of the first step."""
        self._squares, self._numel = 0.0, 0

    def add(self, gradient: Tensor) -> None:
        """Take one parameter's gradient, float32, into this step's account."""
        self._squares += float(torch.linalg.vector_norm(gradient)) ** 2
        self._numel += gradient.numel()

    def end_step(self) -> None:
        """A step whose gradients are zero, or not finite, leaves the average as it is."""
        squares, numel = self._squares, self._numel
        self.drop_step()
        if not squares or not math.isfinite(squares):
            return
        mean = squares / numel
        before = self.mean_square or mean
        self.mean_square = before**MEMORY * mean ** (1 - MEMORY)

    def drop_step(self) -> None:
        """Forget what was taken since the last step's end."""
        self._squares, self._numel = 0.0, 0

    def moments(self, numel: int) -> Moments | None:
        """As of a parameter of `numel` elements that are this large and have mean 0."""
        if self.mean_square is None:
            return None
        root = math.sqrt(self.mean_square)
        return Moments(
            numel=numel,
            survivors=0,
            nonfinite=0,
            sum=0.0,
            unsent_sum=numel * root,
            unsent_square_sum=numel * self.mean_square,
            survivor_sum=0.0,
            survivor_square_sum=0.0,
            largest=root,
        )
