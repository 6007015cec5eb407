"""What may watch the steps of a sieve."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.telemetry.record import StepRecord


class Observer(Protocol):
    """An object that sees each step of a state, in the training thread. It must not raise."""

    def see_gradients(
        self, step: int, parameters: Sequence[ParameterState], gradients: Sequence[Tensor]
    ) -> None:
        """Look at the gradients of a bucket before they are pruned.

        Args:
            parameters: the states of the bucket's parameters, with the residuals before the step;
                empty while their names are unknown.
            gradients: the flat gradients of this rank.
        """

    def end_step(self, record: StepRecord) -> None: ...
