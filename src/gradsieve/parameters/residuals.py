"""What users read of the residuals."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState


class Residuals(Mapping[str, Tensor]):
    """Read-only view: parameter name → residual, float32, of the parameter's shape."""

    def __init__(
        self, parameters: Mapping[str, ParameterState], settle: Callable[[], None]
    ) -> None:
        self._parameters = parameters
        self._settle = settle

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        # Bases and residuals may be turning.
        self._settle()
        return parameter.unrotated_residual()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)
