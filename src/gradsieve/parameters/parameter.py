"""What the sieve keeps for each parameter, and how a step changes it and is undone."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradsieve.parameters.before import Before
from gradsieve.parameters.inherited import Inherited
from gradsieve.parameters.memory import flat_of, laid_out, residual_like, row_numel
from gradsieve.parameters.pieces import AddUp, Dealt, Owned, nothing_to_add
from gradsieve.rotation import rotation_of
from gradsieve.sieve import Moments


class Group(Protocol):
    """What a parameter knows of the `WholeGroup` that it is in."""

    is_current: bool


class ParameterState:
    """The residual, the threshold and the last moments of one parameter on this rank.

    Args:
        whole: whether the parameter is too small to prune and travels whole. Its residual is then
            the rounding error of its gradients.
        rotation: the largest block size of the rotation; 0 for none.
        can_undo: whether a step can be undone. A second residual is kept for that.
        tells_own: whether `unsent` tells what is the rank's own. What is not is kept for that.
    """

    def __init__(
        self,
        name: str,
        parameter: Tensor,
        *,
        whole: bool,
        rotation: int = 0,
        can_undo: bool = True,
        tells_own: bool = False,
    ) -> None:
        self.name = name
        self.label = name
        """The name without modules around the whole model, so that wrappers do not change it."""
        self.shape = tuple(parameter.shape)
        self.numel = parameter.numel()
        self.element_size = parameter.element_size()
        self.device = parameter.device
        self.whole = whole
        self.threshold: float | None = None
        self.moments: Moments | None = None
        self.mean_square: float | None = None
        """Mean square of the gradient over the last steps, if the policy asks for it."""
        residual = residual_like(parameter)
        self.stride = residual.stride()
        """The strides of the gradient in its bucket."""
        self.residual = residual
        """The residual (float32, the shape of the parameter). It is a view of the remainder of
        `group` if the parameter travels whole."""
        self.group: Group | None = None
        """The group to which the parameter belongs if it travels whole."""
        self.owned: Owned | None = None
        """The residual of the sums that this rank prunes; None if it prunes none."""
        self.inherited = Inherited(self.numel, self.device, is_kept=tells_own)
        """The part of the residual that is not the rank's own."""
        self.dealt: Dealt | None = None
        """The piece of the residual that this rank keeps for its node. The rest of the residual is
        then 0 here. None if the rank keeps all of its own residual."""
        self.is_empty = True
        """Whether nothing was kept so far, in the residual or in `owned`."""
        self._can_undo = can_undo
        self._before: Before | None = None
        """The values before this step, if the step has changed them and may be undone."""
        self._spare: Tensor | None = None
        """Memory for the residual of the next step. It is 0 outside the piece of `dealt`."""
        self._has_given = False
        """Whether this step has sent all of the residual."""
        self._rotation_block = rotation
        self.rotation = None if whole else rotation_of(residual, rotation)
        """The rotation. With one, residual and survivors are coefficients in its bases."""
        self.row = row_numel(residual)
        """Number of elements of a row or filter; 0 for a vector."""
        self.squared_remainder = 0.0
        """Sum of the squares of what the frame of the last step lacked of the survivors."""

    def flat_residual(self) -> Tensor:
        """Return a flat view of the residual, in the order of the gradient in its bucket."""
        return flat_of(self.residual)

    @property
    def described(self) -> list[str]:
        """Lines of what both sides of a frame must share."""
        return [f"{self.name} {self.shape} {self.stride} {self.whole}"]

    def open(self) -> tuple[Tensor, Tensor]:
        """Return the flat residual before this step, and the tensor for the one after it.

        They are the same tensor if steps are never undone.
        """
        if self._can_undo:
            self._remember()
        before = self.residual if self._before is None else self._before.residual
        return flat_of(before), self.flat_residual()

    def _remember(self) -> None:
        if self._before is not None:
            return
        self._before = Before(
            self.residual, self.threshold, self.moments, self.is_empty, self.squared_remainder
        )
        self.residual = torch.zeros_like(self.residual) if self._spare is None else self._spare
        self._spare = None

    def clears(self, dtype: torch.dtype) -> bool:
        """Return whether selection leaves zeros in a bucket of `dtype`, at no cost."""
        return not self.whole and self.rotation is None and dtype is torch.float32

    def turn(self, ranks: int, add_up: AddUp) -> None:
        """Turn the bases towards the gradients, if it is time, and the residual with them."""
        if self.rotation is not None and self.rotation.is_due:
            # A piece cannot be turned without the rest of the parameter.
            self.take_over(ranks)
            self.rotation.turn(self.coefficients)
            if self.dealt is not None:
                flat = self.flat_residual()
                flat.copy_(self.dealt.piece_of_sum(flat, add_up))

    @property
    def coefficients(self) -> list[Tensor]:
        """Flat views of what turns with the bases: the residual, and what is inherited."""
        inherited = self.inherited.flat
        return [self.flat_residual(), *([] if inherited is None else [inherited])]

    def deal(self, dealt: Dealt | None, add_up: AddUp) -> None:
        """Divide the residuals of a node's ranks among them, or give each rank its own again.

        Args:
            dealt: the piece that this rank keeps from now on for all ranks of the node; None to
                keep the residual of every element for this rank alone.
            add_up: see `AddUp`.

        Raises:
            SieveError: the loaded state has another piece.
        """
        if self.whole or dealt == self.dealt:
            return
        flat = self.flat_residual()
        if dealt is not None and self.dealt is not None:
            dealt.require_same(self.name, self.dealt)
        if self.dealt is not None:
            # The average over ranks divides by `size` times as many as the average over nodes.
            flat.mul_(self.dealt.size)
            self.inherited.become(None if self.is_empty else flat)
        elif dealt is not None:
            flat.copy_(dealt.piece_of_sum(flat, add_up).mul_(1 / dealt.size))
            self.inherited.become(None)
        self.dealt, self.is_empty, self._spare = dealt, False, None

    def owned_residual(self, start: int, stop: int) -> Tensor:
        """Return the residual of the sums of elements `start` to `stop`."""
        if self.owned is None:
            self.owned = Owned.empty(start, stop)
        self.is_empty = False
        self.owned.before = self.owned.residual.clone()
        return self.owned.residual

    def give_residuals(self, flat: Tensor, ranks: int, scale: float = 1.0) -> None:
        """Add the whole residual to a gradient, as it lies in its bucket, and empty it.

        Args:
            ranks: the world size.
            scale: the scale of the loss, which is a factor of `flat`.
        """
        self.take_over(ranks)
        # Needed even if steps are never undone: a failed exchange returns the residual.
        self._remember()
        before, after = self.open()
        factor = 1 if self.dealt is None else self.dealt.size
        # Add in float32, so that a gradient of half precision is rounded once.
        flat.copy_(flat.float() + scale * flat_of(self._unrotated(before * factor)))
        after.zero_()
        self.inherited.send_all()
        self.is_empty = self._has_given = True

    def undo(self) -> None:
        """Undo this step."""
        self._undo_shared()
        if self._before is not None:
            self._spare = self.residual if self._can_undo else None
            before = self._before
            self.residual, self.threshold, self.moments = before[:3]
            self.is_empty, self.squared_remainder = before.is_empty, before.squared_remainder
        if self.rotation is not None:
            self.rotation.undo()
        self._forget()

    def recover(self) -> None:
        """Undo the sums of this step and what it has given, because the exchange failed.

        The residual that selection has left stays. `put_back` returns the survivors to it.
        """
        if self._has_given:
            self.undo()
            return
        self._undo_shared()
        if self.rotation is not None:
            self.rotation.undo()
        self.commit()

    def commit(self) -> None:
        """End the step and keep its changes."""
        if self._before is not None:
            self._spare = self._before.residual if self._can_undo else None
        if self.owned is not None:
            self.owned.before = None
        self._forget()

    def _undo_shared(self) -> None:
        """Undo the changes of what is kept for others. Survivors that return bring theirs along."""
        if self.owned is not None:
            self.owned.undo()
        self.inherited.undo()

    def _forget(self) -> None:
        self._before, self._has_given = None, False
        self.inherited.commit()
        if self.rotation is not None:
            self.rotation.commit()

    def own(self, piece: tuple[int, int] | None, ranks: int) -> None:
        """Take over the residual of the sums unless this rank goes on pruning the same ones.

        Args:
            piece: the elements whose sums this rank prunes, from the first to before the second;
                (0, 0) if only other ranks prune some, and None if nobody does.
            ranks: the world size, by which an average divides.
        """
        if self.owned is not None and (self.owned.start, self.owned.stop) != piece:
            self.take_over(ranks)
        if piece is not None and self.owned is None and self.inherited.is_kept:
            # Also a piece without elements: all ranks must inherit at the same time.
            self.owned = Owned.empty(*piece)

    def take_over(self, ranks: int) -> None:
        """Move the residual of the sums into the residual of this rank.

        Args:
            ranks: the world size, by which an average divides.
        """
        if self.owned is None:
            return
        piece = self.flat_residual()[self.owned.start : self.owned.stop]
        taken = ranks * self.owned.residual.to(piece.device)
        piece += taken
        self.inherited.add(self.owned.start, taken)
        self.owned = None

    def lay_out(self, stride: Sequence[int], ranks: int) -> None:
        """Lay out the residual anew, because the gradient now has other strides in its bucket.

        All ranks must call it in the same step. The bases begin anew, since they belong to rows in
        memory.

        Args:
            stride: the strides of the gradient in its bucket from now on.
            ranks: the world size.
        """
        self.take_over(ranks)
        self.deal(None, nothing_to_add)
        residual, inherited = self.unrotated()
        self.stride, self._spare = tuple(stride), None
        self.residual = laid_out(residual, stride)
        self.inherited.become(None if inherited is None else flat_of(laid_out(inherited, stride)))
        if self.rotation is not None:
            self.rotation = rotation_of(self.residual, self._rotation_block)
        if self.group is not None:
            # The group takes in the new residual when it is next used.
            self.group.is_current, self.group = False, None

    def unrotated_residual(self) -> Tensor:
        """Return a copy of the residual in the coordinates of the gradient, without rotation."""
        return self._unrotated(self.flat_residual().clone())

    def unrotated(self) -> tuple[Tensor, Tensor | None]:
        """Return what `unrotated_residual` does, and likewise what is inherited, if anything."""
        inherited = self.inherited.flat
        others = None if inherited is None else self._unrotated(inherited.clone())
        return self.unrotated_residual(), others

    def unsent(self) -> Tensor | None:
        """Return what this rank keeps of its own gradients, as a copy; None for nothing."""
        if self.whole or self.is_empty or self.dealt is not None or not self.inherited.is_kept:
            return None
        others = self.inherited.flat
        flat = self.flat_residual()
        return self._unrotated(flat.clone() if others is None else flat - others)

    @property
    def bases(self) -> int:
        """A number for the bases in which the residual is kept; 0 without a rotation."""
        return 0 if self.rotation is None else self.rotation.fingerprint

    def rotate_anew(self, residual: Tensor, inherited: Tensor | None) -> None:
        """Keep what `unrotated` has returned in the bases of now."""
        if self.rotation is not None:
            self.flat_residual().copy_(self.rotation.coefficients(flat_of(residual)))
            if inherited is not None:
                self.inherited.become(self.rotation.coefficients(flat_of(inherited)))

    def unrotated_owned(self) -> Tensor:
        """Return the residual of the sums in the coordinates of the gradient, on the CPU.

        It has the shape of the parameter, and is 0 outside this rank's piece.
        """
        owned = Owned.empty(0, 0) if self.owned is None else self.owned
        return self._unrotated(owned.spread(self.numel))

    def _unrotated(self, flat: Tensor) -> Tensor:
        """Turn coefficients into elements of the gradient, in place."""
        if self.rotation is not None:
            self.rotation.restore(flat)
        return flat.as_strided(self.shape, self.stride)

    def decay(self, factor: float) -> None:
        """Multiply the residuals by `factor`."""
        self.flat_residual().mul_(factor)
        self.inherited.decay(factor)
        if self.owned is not None:
            self.owned.residual.mul_(factor)

    def put_back(self, start: int, indices: Tensor, values: Tensor) -> None:
        """Return survivors that never reached the optimizer to the residual.

        Non-finite values are left out. The residual to which they were added never left its place.

        Args:
            start: the element from which the indices count.
        """
        finite = values.isfinite()
        self.flat_residual()[start:][indices[finite].long()] = values[finite]

    def restore(self, residual: Tensor, owned: Owned | None, dealt: Dealt | None) -> None:
        """Restore what was saved of a parameter of this shape. What is inherited stays."""
        self.residual.copy_(residual)
        self.owned, self.dealt = owned, dealt
        self.is_empty, self._spare = False, None
