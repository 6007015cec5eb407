"""What a step has changed so far, and the ways back."""

from collections.abc import Iterable

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import Unit


class Changes:
    """The units whose residuals a step has touched, and the survivors that it has sent of them."""

    def __init__(self) -> None:
        self._units: list[Unit] = []
        self._sent: list[tuple[ParameterState, int, Tensor, Tensor]] = []

    def touch(self, units: Iterable[Unit]) -> None:
        self._units.extend(units)

    def send(self, parameter: ParameterState, start: int, indices: Tensor, values: Tensor) -> None:
        """Survivors that leave the residual, counted from element `start` on."""
        self._sent.append((parameter, start, indices, values))

    def keep(self) -> None:
        """The step is done."""
        for unit in self._units:
            unit.commit()
        self._clear()

    def drop(self) -> None:
        """The step leaves nothing behind: whoever scales the loss skips it."""
        for unit in self._units:
            unit.undo()
        self._clear()

    def put_back(self, *, error_feedback: bool) -> None:
        """The step failed: what it has sent never reached the optimizer, and stays in residuals."""
        if error_feedback:
            for parameter, start, indices, values in self._sent:
                parameter.put_back(start, indices, values)
        for unit in self._units:
            unit.recover()
        self._clear()

    def _clear(self) -> None:
        self._units, self._sent = [], []
