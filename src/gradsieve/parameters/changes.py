"""The changes that a step has made, and three ways to end it: keep, drop or put back."""

from collections.abc import Iterable

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import Unit, WholeGroup


class Changes:
    """The units whose residuals a step has touched, and the survivors that it has sent."""

    def __init__(self) -> None:
        self._units: list[Unit] = []
        self._sent: list[tuple[ParameterState, int, Tensor, Tensor]] = []

    def touch(self, units: Iterable[Unit]) -> None:
        self._units.extend(units)

    @property
    def touched(self) -> set[str]:
        """The names of the parameters whose residuals the step has touched."""
        units = self._units
        groups = [unit.parameters if isinstance(unit, WholeGroup) else [unit] for unit in units]
        return {parameter.name for group in groups for parameter in group}

    def send(self, parameter: ParameterState, start: int, indices: Tensor, values: Tensor) -> None:
        """Note survivors that leave the residual. Their indices count from element `start`."""
        parameter.inherited.send(start, indices, values)
        self._sent.append((parameter, start, indices, values))

    def commit(self) -> None:
        """End the step and keep its changes."""
        for unit in self._units:
            unit.commit()
        self._clear()

    def undo(self) -> None:
        """Undo all changes, because the step is skipped."""
        for unit in self._units:
            unit.undo()
        self._clear()

    def put_back(self, *, error_feedback: bool) -> None:
        """Return the survivors to the residuals, because they never reached the optimizer."""
        if error_feedback:
            for parameter, start, indices, values in self._sent:
                parameter.put_back(start, indices, values)
        for unit in self._units:
            unit.recover()
        self._clear()

    def _clear(self) -> None:
        self._units, self._sent = [], []
