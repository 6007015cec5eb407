"""What the sieve keeps for each parameter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradsieve.errors import SieveError
from gradsieve.rotation import rotation_of
from gradsieve.sieve import Moments

SavedParameter = dict[str, object]
AddUp = Callable[[Tensor], None]


class Owned:
    """The residual of the piece of a parameter whose sums this rank prunes, on the host."""

    def __init__(self, start: int, residual: Tensor) -> None:
        self.start = start
        self.residual = residual
        """float32 [numel of the piece], in units of the average of the ranks."""
        self.before: Tensor | None = None
        """As it was before this step, where the step has pruned."""

    @property
    def stop(self) -> int:
        return self.start + self.residual.numel()


class Dealt(NamedTuple):
    """Elements `start` to `stop`, of which alone a rank keeps a residual: for `size` ranks."""

    start: int
    stop: int
    size: int


class ParameterState:
    """Residual, threshold and last moments of one parameter on this rank."""

    def __init__(self, name: str, parameter: Tensor, *, whole: bool, rotation: int = 0) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.numel = parameter.numel()
        self.element_size = parameter.element_size()
        self.device = parameter.device
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
        self.owned: Owned | None = None
        self.dealt: Dealt | None = None
        """The ranks of this node keep a piece of the residual each; the rest of it is 0 here."""
        self.is_empty = True
        """Nothing was kept so far, here or in `owned`."""
        self._given: Tensor | None = None
        """The residual before this step, where the step has sent all of it."""
        self._rotation_block = rotation
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

    def keeps(self, index: int) -> bool:
        """Whether this rank keeps the residual of an element."""
        return self.dealt is None or self.dealt.start <= index < self.dealt.stop

    def clears(self, dtype: torch.dtype) -> bool:
        """Whether selecting leaves zeros in a bucket of `dtype`, which costs no pass of its own."""
        return not self.whole and self.rotation is None and dtype is torch.float32

    def turn(self, ranks: int, add_up: AddUp) -> None:
        """Let the bases follow the gradients, where it is time, and the residuals with them.

        Args:
            add_up: as for `deal`.
        """
        if self.rotation is not None and self.rotation.is_due:
            # A piece cannot be turned without the rest of the parameter.
            self.take_over(ranks)
            self.rotation.turn([self.flat_residual()])
            if self.dealt is not None:
                self._keep(self.dealt, add_up)

    def deal(self, dealt: Dealt | None, add_up: AddUp) -> None:
        """From now on keep the residual of a piece alone, for all ranks of the node; None: of all.

        Args:
            add_up: replaces a tensor by the sum of the node's ranks; all of them must call it.
        """
        if self.whole or dealt == self.dealt:
            return
        if dealt is not None and self.dealt is not None:
            raise SieveError(
                f"parameter {self.name}: this rank keeps the residual of elements {dealt.start} to "
                f"{dealt.stop}, the loaded state has {self.dealt.start} to {self.dealt.stop}; "
                "load on each rank what it has saved itself, with nodes of the same size"
            )
        if self.dealt is not None:
            # An average of ranks divides it by as many more than one of nodes.
            self.flat_residual().mul_(self.dealt.size)
        elif dealt is not None:
            self._keep(dealt, add_up, share=1 / dealt.size)
        self.dealt, self.is_empty = dealt, False

    def _keep(self, dealt: Dealt, add_up: AddUp, share: float = 1.0) -> None:
        """Add the residuals of the node's ranks up, and keep this rank's piece of the sum."""
        # A copy: a rank may die on the way.
        total = self.flat_residual().clone()
        add_up(total)
        total[: dealt.start] = 0
        total[dealt.stop :] = 0
        self.flat_residual().copy_(total.mul_(share))

    def owned_residual(self, start: int, stop: int) -> Tensor:
        """The residual of the sums of elements `start` to `stop`."""
        if self.owned is None:
            self.owned = Owned(start, torch.zeros(stop - start, dtype=torch.float32, device="cpu"))
        self.is_empty = False
        self.owned.before = self.owned.residual.clone()
        return self.owned.residual

    def give_residuals(self, flat: Tensor, ranks: int) -> None:
        """Add to a gradient, as it lies in its bucket, all that was kept of those before."""
        self.take_over(ranks)
        left = self.flat_residual()
        self._given = left.clone()
        factor = 1 if self.dealt is None else self.dealt.size
        # Rounded once, where the gradient is of half precision.
        flat.copy_(flat.float() + self._restored(left * factor))
        left.zero_()
        self.is_empty = True

    def undo(self) -> None:
        """This step's sums and residuals never reached the optimizer."""
        if self.owned is not None and self.owned.before is not None:
            self.owned.residual, self.owned.before = self.owned.before, None
        if self._given is not None:
            self.flat_residual().copy_(self._given)
            self._given, self.is_empty = None, False

    def keep(self) -> None:
        """The step is done."""
        self._given = None
        if self.owned is not None:
            self.owned.before = None

    def give_up_unless(self, start: int, stop: int, ranks: int) -> None:
        """Keep what was pruned of sums only where they are of elements `start` to `stop`."""
        if self.owned is not None and (self.owned.start, self.owned.stop) != (start, stop):
            self.take_over(ranks)

    def take_over(self, ranks: int) -> None:
        """Move what was pruned of the sums into this rank's own residual."""
        if self.owned is None:
            return
        piece = self.flat_residual()[self.owned.start : self.owned.stop]
        piece += ranks * self.owned.residual.to(piece.device)
        self.owned = None

    def lay_out(self, stride: Sequence[int], ranks: int) -> None:
        """The gradient lies in its bucket by other strides than before: the residual follows.

        All ranks must call it in the same step. Bases, which are of rows in memory, begin anew.
        """
        residual = self.residual
        if residual is not None:
            self.take_over(ranks)
            self.deal(None, nothing_to_add)
            before = self.unrotated_residual()
            residual = torch.empty_strided(
                self.shape, tuple(stride), dtype=torch.float32, device=self.device
            )
            self.residual = residual.copy_(before)
            if self.rotation is not None:
                self.rotation = rotation_of(residual, self._rotation_block)
        self.stride = tuple(stride)

    def unrotated_residual(self) -> Tensor:
        """A copy of the residual as a part of the gradient."""
        return self._restored(self.flat_residual().clone()).as_strided(self.shape, self.stride)

    def unrotated_owned(self) -> Tensor:
        """What this rank has pruned of the sums as a part of the averaged gradient, on the host."""
        whole = torch.zeros(self.numel, dtype=torch.float32, device="cpu")
        if self.owned is not None:
            whole[self.owned.start : self.owned.stop] = self.owned.residual
        return self._restored(whole).as_strided(self.shape, self.stride)

    def _restored(self, flat: Tensor) -> Tensor:
        """Coefficients become a part of the gradient, in place."""
        if self.rotation is not None:
            self.rotation.restore(flat)
        return flat

    def put_back(self, start: int, indices: Tensor, values: Tensor) -> None:
        """Return survivors that never reached the optimizer to the residual, from `start` on.

        A non-finite value has no place there; what it was added to never left the residual.
        """
        finite = values.isfinite()
        self.flat_residual()[start:][indices[finite].long()] = values[finite]

    def save(self) -> SavedParameter:
        moments = None
        if self.moments is not None:
            fields = Moments.__dataclass_fields__
            moments = {n: getattr(self.moments, n) for n in fields if n != "magnitudes"}
        residual = None if self.residual is None else self.residual.contiguous().clone()
        rotation = None if self.rotation is None else self.rotation.save()
        owned = self.owned
        return {
            "threshold": self.threshold,
            "moments": moments,
            "mean_square": self.mean_square,
            "residual": residual,
            "rotation": rotation,
            "owned": None if owned is None else (owned.start, owned.residual.clone()),
            "dealt": None if self.dealt is None else tuple(self.dealt),
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
        owned = saved.get("owned")
        if isinstance(owned, Sequence) and int(owned[0]) + owned[1].numel() > self.numel:
            raise ValueError(
                f"parameter {self.name}: the saved state owns elements {owned[0]} to "
                f"{owned[0] + owned[1].numel()}, the parameter has {self.numel}"
            )
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
            self.is_empty = False
        rotation = saved.get("rotation")
        if self.rotation is not None and isinstance(rotation, Mapping):
            self.rotation.load(rotation)
        owned = saved.get("owned")
        self.owned = None
        if isinstance(owned, Sequence):
            self.owned = Owned(int(owned[0]), owned[1].clone())
        dealt = saved.get("dealt")
        self.dealt = Dealt(*dealt) if isinstance(dealt, Sequence) else None
        threshold, moments = saved["threshold"], saved["moments"]
        self.threshold = float(threshold) if isinstance(threshold, float | int) else None
        self.moments = Moments(**moments) if isinstance(moments, dict) else None
        mean_square = saved.get("mean_square")
        self.mean_square = float(mean_square) if isinstance(mean_square, float | int) else None


def nothing_to_add(total: Tensor) -> None:
    """The sum of one residual is itself."""


def row_numel(parameter: Tensor) -> int:
    """Elements of a row or filter, which lie together; 0 for a vector."""
    return parameter.numel() // max(1, parameter.shape[0]) if parameter.dim() > 1 else 0


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
