"""The threshold of each parameter in each step: policy, ramp and budget together."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from gradsieve.control.budget import Budget, BudgetSteering
from gradsieve.control.thresholds import Threshold
from gradsieve.errors import SieveError
from gradsieve.parameters.gradient_sizes import GradientSizes
from gradsieve.parameters.parameter import ParameterState
from gradsieve.sieve import Moments, measure, sample_magnitudes

LARGEST_FLOAT = torch.finfo(torch.float32).max


class Thresholding:
    """Asks the policy for thresholds, and gives it the moments that it reads.

    Args:
        policy, start_step, ramp_steps: see `SieveConfig`.
    """

    def __init__(self, policy: Threshold, start_step: int, ramp_steps: int) -> None:
        self.policy = policy
        self.start_step = start_step
        self.ramp_steps = ramp_steps
        self.sizes = GradientSizes()
        self.budget = BudgetSteering(policy) if isinstance(policy, Budget) else None
        self.begins_low = isinstance(policy, Budget) and policy.limit == "auto"
        """Whether the first steps send more than fits, so that few gradients wait for long."""

    @property
    def scale(self) -> float:
        """The factor of every threshold that a budget has found to fit; 1 without one."""
        return 1.0 if self.budget is None else self.budget.scale

    def scale_in(self, step: int) -> float:
        """Return the factor by which a budget multiplies every threshold in a step.

        Args:
            step: the number of the step.
        """
        if self.budget is None or not self.begins_low:
            return self.scale
        return self.budget.early_scale(step - self.start_step + 1)

    def is_early(self, step: int) -> bool:
        """Return whether a step sends more than a budget has found to fit."""
        return self.scale_in(step) < self.scale

    def next(self, parameter: ParameterState, gradient: Tensor, left: Tensor, step: int) -> float:
        """Return the threshold of a parameter for this step.

        It is infinite if float32 cannot hold it.

        Args:
            gradient: float32 [numel], without the scale of the loss.
            left: the residual, float32 [numel].
            step: the number of the step.

        Raises:
            SieveError: the policy has returned a negative threshold or NaN.
        """
        ramp = min(1.0, (step - self.start_step + 1) / (self.ramp_steps + 1))
        moments = parameter.moments
        if self.policy.measured == "gradient":
            moments = measure(gradient)
        elif self.policy.measured == "balanced":
            moments = self.sizes.balanced(parameter, gradient)
        elif (
            moments is None
            or parameter.threshold is None
            or ramp < 1
            or self.policy.measured == "accumulated"
        ):
            # During a ramp the last moments belong to a lower threshold, which would pull this
            # one down.
            moments = measure(gradient, left)
        if self.policy.measured == "magnitudes":
            sample = sample_magnitudes(gradient, left, step)
            moments = replace(moments, magnitudes=sample)
        threshold = self.policy.next(moments, parameter.threshold)
        if not threshold >= 0:
            raise SieveError(
                f"{self.policy} gave the threshold {threshold} for {parameter.name}; a policy "
                "must give 0 or more"
            )
        # A parameter of zeros says nothing about its threshold, so none is remembered.
        parameter.threshold = threshold if moments.largest > 0 else parameter.threshold
        ramped = ramp * self.scale_in(step) * threshold
        return ramped if ramped <= LARGEST_FLOAT else math.inf

    def observe(self, parameter: ParameterState, moments: Moments) -> None:
        """Remember the moments that the selection of this step has found."""
        parameter.moments = moments
        if self.policy.measured == "balanced":
            self.sizes.add(parameter, moments.numel, moments.gradient_square_sum)
