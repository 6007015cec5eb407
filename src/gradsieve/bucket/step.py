"""The running step of one rank, which its stages share."""

from dataclasses import dataclass

from torch import Tensor

from gradsieve.bucket.plan_cache import PlanCache
from gradsieve.config import SieveConfig
from gradsieve.parameters.changes import Changes
from gradsieve.parameters.thresholding import Thresholding
from gradsieve.sieve import Workspace
from gradsieve.telemetry.clock import StepClock


@dataclass(slots=True, kw_only=True)
class Step:
    """What select, encode, exchange and decode share in one step."""

    number: int
    config: SieveConfig
    thresholds: Thresholding
    plans: PlanCache
    changes: Changes
    """The changes that the step has made so far."""
    workspace: Workspace
    clock: StepClock
    loss_scale: float
    """The scale of the loss, which is a factor of all gradients."""
    may_be_unused: bool
    """Whether there may be parameters that no rank used. DDP drops their average."""

    def unscaled(self, flat: Tensor) -> Tensor:
        """Return a gradient without the scale of the loss. A float32 one is changed in place."""
        return flat if self.loss_scale == 1 else flat.float().mul_(1 / self.loss_scale)

    def holds(self, gradient: Tensor) -> bool:
        """Return whether a gradient must be held back, since DDP may drop the average.

        A gradient of zeros may belong to a parameter that no rank used.
        """
        if not self.may_be_unused or bool(gradient[:64].any()):
            return False
        return not bool(gradient.any())
