"""Parameters that are too small to prune.

All of them in a bucket travel together in one section of a frame, because each section has a cost.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradsieve.codec import Section, Values, whole_section
from gradsieve.parameters.parameter import ParameterState


class WholeGroup:
    """The parameters of a bucket that travel whole, one behind the other.

    `remainder` keeps the error of rounding their gradients, which is added to the next gradient. It
    is in units of this rank's own gradient in every topology. The residuals of the parameters are
    views of it. When DDP rebuilds its buckets, the new group copies them.
    """

    whole: ClassVar[bool] = True
    row: ClassVar[int] = 0
    rotation: ClassVar[None] = None

    def __init__(self, parameters: Sequence[ParameterState], owner: int = 0) -> None:
        self.parameters = parameters
        self.owner = owner
        """The rank that adds up the group, if the topology divides a bucket among ranks."""
        self.is_current = False
        """Whether the residuals of the parameters are views of the remainder of this group."""
        self.named = [(parameter.name, parameter.numel) for parameter in parameters]
        self.numel = sum(parameter.numel for parameter in parameters)
        self._remainder = torch.empty(0, dtype=torch.float32, device=parameters[0].device)
        self._before: Tensor | None = None
        """The remainder before this step, if the step has changed it."""
        self._given: Tensor | None = None
        """The remainder after this step, if its exchange fails."""
        self._numbers: Tensor | None = None

    @property
    def described(self) -> list[str]:
        """Lines of what both sides of a frame must share."""
        return [line for parameter in self.parameters for line in parameter.described]

    @property
    def remainder(self) -> Tensor:
        """The rounding errors (float32 [numel]), in the order of the gradients in the bucket."""
        if not self.is_current:
            self._remainder = torch.cat([p.flat_residual() for p in self.parameters])
            parts = torch.split(self._remainder, [p.numel for p in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.residual = part.as_strided(parameter.shape, parameter.stride)
                if parameter.group is not None:
                    parameter.group.is_current = False
                parameter.group = self
            self.is_current = True
        return self._remainder

    def give(
        self,
        flat: Tensor,
        *,
        scale: float = 1.0,
        may_be_unused: bool = False,
        keeps_gradient: bool = True,
    ) -> Tensor:
        """Return gradients + remainder (float32 [numel]), and empty the remainder.

        Args:
            flat: the gradients [numel].
            scale: the scale of the loss, if it is a factor of `flat`.
            may_be_unused: whether parameters with a gradient of zeros keep their remainder,
                because DDP drops the average of a parameter that no rank used.
            keeps_gradient: whether a failed exchange leaves the gradients in the remainder, too.
        """
        remainder, gradient = self.remainder, flat.float()
        self._before = remainder.clone()
        given = gradient + scale * remainder
        if not may_be_unused:
            remainder.zero_()
        else:
            used = self._used(gradient)
            given = torch.where(used, given, gradient)
            remainder.masked_fill_(used, 0.0)
        if keeps_gradient:
            self._given = remainder + given / scale
        return given

    def add_rounding_error(self, start: int, rest: Tensor) -> None:
        """Add the rounding errors of the elements from `start` on to the remainder."""
        remainder = self.remainder
        if self._before is None:
            self._before = remainder.clone()
        remainder[start : start + rest.numel()] += rest.to(remainder.device)

    def decay(self, factor: float) -> None:
        """Multiply the remainder by `factor`."""
        self.remainder.mul_(factor)

    def commit(self) -> None:
        """End the step and keep its changes."""
        self._before = self._given = None

    def undo(self) -> None:
        """Undo this step."""
        if self._before is not None:
            self.remainder.copy_(self._before)
        self.commit()

    def recover(self) -> None:
        """Keep what never reached the optimizer, because the exchange failed."""
        if self._before is not None and self._given is not None:
            finite = self._given.isfinite()
            self._before = torch.where(finite, self._given, self._before)
        self.undo()

    def _used(self, gradient: Tensor) -> Tensor:
        """Return which elements belong to a parameter whose gradient is not all zeros."""
        if self._numbers is None:
            numels = torch.tensor(
                [p.numel for p in self.parameters], dtype=torch.int64, device="cpu"
            )
            self._numbers = torch.repeat_interleave(numels).to(gradient.device)
        nonzero = torch.zeros(len(self.parameters), dtype=torch.int32, device=gradient.device)
        nonzero.index_add_(0, self._numbers, (gradient != 0).int())
        return nonzero[self._numbers] > 0


Unit = ParameterState | WholeGroup
"""A part of a bucket that has sections of its own in a frame."""


def round_whole(
    values: Tensor, mode: Values, *, error_feedback: bool
) -> tuple[Section, Tensor | None]:
    """Return a section of all `values` (float32, on the CPU), and its rounding errors.

    The errors are None if the section is exact.

    Args:
        error_feedback: whether the errors will be sent later. Powers of two are too coarse without.
    """
    if mode == "levels" and not error_feedback:
        mode = "bfloat16"
    section = whole_section(values.numpy(), mode)
    if section.is_exact:
        return section, None
    _, sent = section.survivors()
    # A difference of infinities is NaN. Such a step is undone.
    return section, values - torch.from_numpy(sent)
