"""A running step on one rank."""

from dataclasses import dataclass

from torch import Tensor

from gradsieve.bucket.plans import Plans
from gradsieve.config import SieveConfig
from gradsieve.parameters.changes import Changes
from gradsieve.parameters.thresholding import Thresholding
from gradsieve.sieve import Workspace
from gradsieve.telemetry.clock import StepClock


@dataclass(slots=True, kw_only=True)
class Step:
    """What the stages of a step share: select, encode, exchange, decode."""

    number: int
    config: SieveConfig
    thresholds: Thresholding
    plans: Plans
    changes: Changes
    """What the step has changed so far."""
    workspace: Workspace
    clock: StepClock
    loss_scale: float
    """What gradients are multiplied by."""
    may_be_unused: bool
    """A parameter may be one that no rank used; DDP drops the result of those."""

    def unscaled(self, flat: Tensor) -> Tensor:
        """A gradient without the scale of the loss; float32 is changed in place."""
        return flat if self.loss_scale == 1 else flat.float().mul_(1 / self.loss_scale)

    def holds(self, gradient: Tensor) -> bool:
        """Whether nothing may be sent of a gradient, since DDP may drop the result.

        A gradient that is zero throughout may be one of a parameter that no rank used.
        """
        if not self.may_be_unused or bool(gradient[:64].any()):
            return False
        return not bool(gradient.any())
