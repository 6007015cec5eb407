"""What a parameter has kept before a step."""

from typing import NamedTuple

from torch import Tensor

from gradsieve.sieve import Moments


class Before(NamedTuple):
    """The values that are restored if a step is undone."""

    residual: Tensor
    threshold: float | None
    moments: Moments | None
    is_empty: bool
    squared_remainder: float
