"""What the sieve keeps for each parameter."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from gradsieve.errors import SieveError
from gradsieve.rotation import rotation_of
from gradsieve.sieve import Moments

SavedParameter = dict[str, object]


class ParameterState:
    """Residual, threshold and last moments of one parameter on this rank."""

    def __init__(self, name: str, parameter: Tensor, *, whole: bool, rotation: int = 0) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.numel = parameter.numel()
        self.whole = whole
        """The parameter is too small to prune and travels whole; it has no residual."""
        self.threshold: float | None = None
        self.moments: Moments | None = None
        self.mean_square: float | None = None
        """Of the gradient over the last steps, where the policy asks for it."""
        self.residual: Tensor | None = None
        residual = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False).detach()
        if residual.stride() != parameter.stride():
            # DDP lays out the gradients of parameters with gaps or overlaps like this.
            residual = residual.contiguous()
        self.stride = residual.stride()
        """Of the parameter's gradient in its bucket."""
        if not whole:
            self.residual = residual
        self.rotation = None if whole else rotation_of(residual, rotation)
        """With one, residual and survivors are coefficients in its bases."""
        self.row = row_numel(residual)
        self.squared_remainder = 0.0
        """Of the last step: what its frame lacked of the survivors, squares summed."""

    def flat_residual(self) -> Tensor:
        """The residual in the order in which the gradient lies in its bucket."""
        if self.residual is None:
            raise SieveError(f"parameter {self.name} travels whole and has no residual")
        return self.residual.as_strided((self.numel,), (1,))

    def turn(self) -> None:
        """Let the bases follow the gradients, where it is time, and the residual with them."""
        if self.rotation is not None and self.rotation.is_due:
            self.rotation.turn([self.flat_residual()])

    def unrotated_residual(self) -> Tensor:
        """A copy of the residual as a part of the gradient."""
        residual = self.flat_residual().clone()
        if self.rotation is not None:
            self.rotation.restore(residual)
        return residual.as_strided(self.shape, self.stride)

    def put_back(self, indices: Tensor, values: Tensor) -> None:
        """Return survivors that never reached the optimizer to the residual.

        A non-finite value has no place there; what it was added to never left the residual.
        """
        finite = values.isfinite()
        self.flat_residual()[indices[finite].long()] = values[finite]

    def save(self) -> SavedParameter:
        moments = None
        if self.moments is not None:
            fields = Moments.__dataclass_fields__
            moments = {n: getattr(self.moments, n) for n in fields if n != "magnitudes"}
        residual = None if self.residual is None else self.residual.contiguous().clone()
        rotation = None if self.rotation is None else self.rotation.save()
        return {
            "threshold": self.threshold,
            "moments": moments,
            "mean_square": self.mean_square,
            "residual": residual,
            "rotation": rotation,
        }

    def require_fit(self, saved: Mapping[str, object]) -> None:
        """Raise ValueError if `load` cannot take what was saved."""
        if not {"residual", "threshold", "moments"} <= saved.keys():
            raise ValueError(
                f"parameter {self.name}: the saved state lacks its residual, threshold or moments"
            )
        residual = saved["residual"]
        if (residual is None) != self.whole:
            raise ValueError(
                f"parameter {self.name}: the saved state has {'no' if residual is None else 'a'} "
                "residual, this one has the opposite; min_numel must be what it was when saving"
            )
        rotation = saved.get("rotation")
        if (rotation is None) != (self.rotation is None):
            raise ValueError(
                f"parameter {self.name}: the saved state has {'no' if rotation is None else 'a'} "
                "rotation, this one has the opposite; rotation must be what it was when saving"
            )
        if self.rotation is not None and isinstance(rotation, Mapping):
            self.rotation.require_fit(self.name, rotation)
        shape = residual.shape if isinstance(residual, Tensor) else None
        if self.residual is not None and shape != self.residual.shape:
            raise ValueError(
                f"parameter {self.name}: the saved residual is {shape}, the "
                f"parameter {list(self.residual.shape)}"
            )

    def load(self, saved: Mapping[str, object]) -> None:
        self.require_fit(saved)
        residual = saved["residual"]
        if self.residual is not None and isinstance(residual, Tensor):
            self.residual.copy_(residual)
        rotation = saved.get("rotation")
        if self.rotation is not None and isinstance(rotation, Mapping):
            self.rotation.load(rotation)
        threshold, moments = saved["threshold"], saved["moments"]
        self.threshold = float(threshold) if isinstance(threshold, float | int) else None
        self.moments = Moments(**moments) if isinstance(moments, dict) else None
        mean_square = saved.get("mean_square")
        self.mean_square = float(mean_square) if isinstance(mean_square, float | int) else None


def row_numel(parameter: Tensor) -> int:
    """Elements of a row or filter, which lie together; 0 for a vector."""
    return parameter.numel() // parameter.shape[0] if parameter.dim() > 1 else 0


class Residuals(Mapping[str, Tensor]):
    """Read-only view: parameter name → residual, float32, of the parameter's shape."""

    def __init__(
        self, parameters: Mapping[str, ParameterState], settle: Callable[[], None]
    ) -> None:
        self._parameters = parameters
        self._settle = settle

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        if parameter.residual is None:
            raise KeyError(f"{name} travels whole and has no residual (see min_numel)")
        # Bases and residuals may be turning.
        self._settle()
        return parameter.unrotated_residual()

    def __iter__(self) -> Iterator[str]:
        return (name for name, state in self._parameters.items() if not state.whole)

    def __len__(self) -> int:
        return sum(not state.whole for state in self._parameters.values())
