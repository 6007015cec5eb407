"""The part of a residual that is not the rank's own."""

import torch
from torch import Tensor


class Inherited:
    """What a rank has taken over from others into its residual, and has not sent yet.

    It comes from pruned sums, which belong to all ranks, and from what the ranks of a node have
    kept together. An element that is sent leaves the residual, and its inherited part with it.

    Args:
        numel: the number of elements of the parameter.
        device: where the residual is.
        is_kept: whether anybody asks for it. Otherwise it takes no memory.
    """

    def __init__(self, numel: int, device: torch.device, *, is_kept: bool) -> None:
        self.is_kept = is_kept
        self.flat: Tensor | None = None
        """float32 [numel], in the order and the bases of the residual. None if nothing was taken
        over since everything was sent. It is None on all ranks at the same time."""
        self._numel, self._device = numel, device
        self._before: tuple[Tensor | None] | None = None
        """`flat` before this step, if the step has changed it."""

    def add(self, start: int, values: Tensor) -> None:
        """Add what the residual has taken over of the elements from `start` on."""
        if not self.is_kept:
            return
        if self.flat is None:
            self.flat = torch.zeros(self._numel, dtype=torch.float32, device=self._device)
        self.flat[start : start + values.numel()] += values

    def become(self, flat: Tensor | None) -> None:
        """Take a copy of `flat` for what is inherited from now on, between steps."""
        self.flat = flat.clone() if self.is_kept and flat is not None else None

    def send(self, start: int, indices: Tensor, values: Tensor) -> None:
        """Leave out what this step sends. Elements that are not finite stay where they are.

        Args:
            indices: int32 [survivors], counted from `start`, on the device of the residual.
            values: float32 [survivors].
        """
        if self.flat is not None:
            places = indices[values.isfinite()].long() + start
            self._replace(self.flat.index_fill(0, places, 0.0))

    def send_all(self) -> None:
        """Leave out everything, because this step sends all of the residual."""
        self._replace(None)

    def _replace(self, flat: Tensor | None) -> None:
        if self._before is None:
            self._before = (self.flat,)
        self.flat = flat

    def decay(self, factor: float) -> None:
        """Multiply by `factor`, between steps."""
        if self.flat is not None:
            self.flat.mul_(factor)

    def undo(self) -> None:
        """Undo what this step has sent."""
        if self._before is not None:
            (self.flat,) = self._before
        self.commit()

    def commit(self) -> None:
        """End the step and keep its changes."""
        self._before = None
