"""The view of the residuals that users read."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState


class Residuals(Mapping[str, Tensor]):
    """Read-only mapping of parameter names to residuals (float32, the shape of the parameter)."""

    def __init__(
        self, parameters: Mapping[str, ParameterState], finish: Callable[[], None]
    ) -> None:
        self._parameters = parameters
        self._finish = finish

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        # Wait, because the worker may be turning bases and residuals.
        self._finish()
        return parameter.unrotated_residual()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)
