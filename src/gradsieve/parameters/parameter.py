"""What the sieve keeps for each parameter."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradsieve.errors import SieveError
from gradsieve.rotation import rotation_of
from gradsieve.sieve import Moments

if TYPE_CHECKING:
    from gradsieve.parameters.whole import WholeGroup

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


class Before(NamedTuple):
    """What a step goes back to where it must leave nothing behind."""

    residual: Tensor
    threshold: float | None
    moments: Moments | None
    is_empty: bool
    squared_remainder: float


class ParameterState:
    """Residual, threshold and last moments of one parameter on this rank.

    Args:
        whole: the parameter is too small to prune and travels whole; its residual is what rounding
            has left of its gradients.
        can_undo: a step can be taken back, for which a second residual is kept.
    """

    def __init__(
        self,
        name: str,
        parameter: Tensor,
        *,
        whole: bool,
        rotation: int = 0,
        can_undo: bool = True,
    ) -> None:
        self.name = name
        self.label = name
        """The name without modules around the whole model: the same however that is wrapped."""
        self.shape = tuple(parameter.shape)
        self.numel = parameter.numel()
        self.element_size = parameter.element_size()
        self.device = parameter.device
        self.whole = whole
        self.threshold: float | None = None
        self.moments: Moments | None = None
        self.mean_square: float | None = None
        """Of the gradient over the last steps, where the policy asks for it."""
        residual = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False).detach()
        if residual.stride() != parameter.stride():
            # DDP lays out the gradients of parameters with gaps or overlaps like this.
            residual = residual.contiguous()
        self.stride = residual.stride()
        """Of the parameter's gradient in its bucket."""
        self.residual = residual
        """A view of its group's remainder, where the parameter travels whole."""
        self.group: WholeGroup | None = None
        """The bucket's parameters that travel whole, where this is one."""
        self.owned: Owned | None = None
        self.dealt: Dealt | None = None
        """The ranks of this node keep a piece of the residual each; the rest of it is 0 here."""
        self.is_empty = True
        """Nothing was kept so far, here or in `owned`."""
        self._can_undo = can_undo
        self._before: Before | None = None
        """What was before this step, where the step has changed it and may be taken back."""
        self._spare: Tensor | None = None
        """Memory for the next step's residual; 0 outside what `dealt` leaves to this rank."""
        self._has_given = False
        """This step has sent all of the residual."""
        self._rotation_block = rotation
        self.rotation = None if whole else rotation_of(residual, rotation)
        """With one, residual and survivors are coefficients in its bases."""
        self.row = row_numel(residual)
        self.squared_remainder = 0.0
        """Of the last step: what its frame lacked of the survivors, squares summed."""

    def flat_residual(self) -> Tensor:
        """The residual in the order in which the gradient lies in its bucket."""
        return self.residual.as_strided((self.numel,), (1,))

    @property
    def described(self) -> list[str]:
        """Lines of what both sides of a frame must share."""
        return [f"{self.name} {self.shape} {self.stride} {self.whole}"]

    def open(self) -> tuple[Tensor, Tensor]:
        """The flat residual of before this step, and where this step leaves its own.

        They are the same tensor where a step is not to be taken back.
        """
        if self._can_undo:
            self._remember()
        before = self.residual if self._before is None else self._before.residual
        return before.as_strided((self.numel,), (1,)), self.flat_residual()

    def _remember(self) -> None:
        if self._before is not None:
            return
        self._before = Before(
            self.residual, self.threshold, self.moments, self.is_empty, self.squared_remainder
        )
        self.residual = torch.zeros_like(self.residual) if self._spare is None else self._spare
        self._spare = None

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
                f"{dealt.stop}, the loaded state has {self.dealt.start} to {self.dealt.stop}: "
                "nodes were of another size; gs.reshard makes states without pieces"
            )
        if self.dealt is not None:
            # An average of ranks divides it by as many more than one of nodes.
            self.flat_residual().mul_(self.dealt.size)
        elif dealt is not None:
            self._keep(dealt, add_up, share=1 / dealt.size)
        self.dealt, self.is_empty, self._spare = dealt, False, None

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

    def give_residuals(self, flat: Tensor, ranks: int, scale: float = 1.0) -> None:
        """Add to a gradient, as it lies in its bucket, all that was kept of those before.

        Args:
            scale: what a gradient of 1 is in `flat`.
        """
        self.take_over(ranks)
        # Also where steps are not taken back: a failed exchange gives the residual back.
        self._remember()
        before, after = self.open()
        factor = 1 if self.dealt is None else self.dealt.size
        # Rounded once, where the gradient is of half precision.
        flat.copy_(flat.float() + scale * self._restored(before * factor))
        after.zero_()
        self.is_empty = self._has_given = True

    def undo(self) -> None:
        """The step leaves nothing behind."""
        self._undo_sums()
        if self._before is not None:
            self._spare = self.residual if self._can_undo else None
            before = self._before
            self.residual, self.threshold, self.moments = before[:3]
            self.is_empty, self.squared_remainder = before.is_empty, before.squared_remainder
        if self.rotation is not None:
            self.rotation.undo()
        self._forget()

    def recover(self) -> None:
        """The exchange failed: this step's sums and what it has given never reached the optimizer.

        The residual that selecting has left stays: survivors return to it by `put_back`.
        """
        if self._has_given:
            self.undo()
            return
        self._undo_sums()
        if self.rotation is not None:
            self.rotation.undo()
        self.commit()

    def commit(self) -> None:
        """The step is done."""
        if self._before is not None:
            self._spare = self._before.residual if self._can_undo else None
        if self.owned is not None:
            self.owned.before = None
        self._forget()

    def _undo_sums(self) -> None:
        if self.owned is not None and self.owned.before is not None:
            self.owned.residual, self.owned.before = self.owned.before, None

    def _forget(self) -> None:
        self._before, self._has_given = None, False
        if self.rotation is not None:
            self.rotation.commit()

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
        self.take_over(ranks)
        self.deal(None, nothing_to_add)
        before, self._spare = self.unrotated_residual(), None
        residual = torch.empty_strided(
            self.shape, tuple(stride), dtype=torch.float32, device=self.device
        )
        self.residual, self.stride = residual.copy_(before), tuple(stride)
        if self.rotation is not None:
            self.rotation = rotation_of(residual, self._rotation_block)
        if self.group is not None:
            # The group takes the new one in when it is next used.
            self.group.is_current, self.group = False, None

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

    def decay(self, factor: float) -> None:
        """Multiply all that was kept."""
        self.flat_residual().mul_(factor)
        if self.owned is not None:
            self.owned.residual.mul_(factor)

    def put_back(self, start: int, indices: Tensor, values: Tensor) -> None:
        """Return survivors that never reached the optimizer to the residual, from `start` on.

        A non-finite value has no place there; what it was added to never left the residual.
        """
        finite = values.isfinite()
        self.flat_residual()[start:][indices[finite].long()] = values[finite]

    def restore(self, residual: Tensor, owned: Owned | None, dealt: Dealt | None) -> None:
        """Take over what was saved of the parameter, of its shape."""
        self.residual.copy_(residual)
        self.owned, self.dealt = owned, dealt
        self.is_empty, self._spare = False, None


def nothing_to_add(total: Tensor) -> None:
    """The sum of one residual is itself."""


def row_numel(parameter: Tensor) -> int:
    """Elements of a row or filter, which lie together; 0 for a vector."""
    return parameter.numel() // max(1, parameter.shape[0]) if parameter.dim() > 1 else 0
