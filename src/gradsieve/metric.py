"""The optimizer's own unit for each element: the root of Adam's second moment.

Adam divides by it, so that an error counts as much as it is large in this unit, whatever the
element. All ranks hold the same second moments bit for bit: the unit costs no byte.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

SECOND_MOMENT = "exp_avg_sq"
LOWEST = 2.0**-10
"""Of a parameter's largest unit: elements that have hardly seen a gradient get no finer one."""


class Metric(Protocol):
    def scale(self, parameter: Tensor, stride: tuple[int, ...]) -> Tensor | None:
        """Units of the elements, float32, flat as a gradient of this stride lies in memory.

        None where there are none.
        """


class OptimizerMetric:
    """√v of Adam, AdamW and others that keep `exp_avg_sq`; None before the first step, and for SGD.

    The floor is a share of the largest: a maximum is the same on every processor, a mean is not.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def scale(self, parameter: Tensor, stride: tuple[int, ...]) -> Tensor | None:
        second_moment = self.optimizer.state.get(parameter, {}).get(SECOND_MOMENT)
        if second_moment is None or not second_moment.numel():
            return None
        # Of the gradient's stride, whatever the optimizer's.
        units = torch.empty_strided(
            second_moment.shape, stride, dtype=torch.float32, device=second_moment.device
        ).copy_(second_moment.detach())
        scale: Tensor = units.as_strided((units.numel(),), (1,)).sqrt_()
        largest = scale.max()
        if not bool(torch.isfinite(largest)) or float(largest) == 0:
            return None
        return scale.clamp_(min=float(largest) * LOWEST)
