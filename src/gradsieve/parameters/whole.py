"""Parameters that are too small to prune: all of a bucket travel in one section of a frame."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradsieve.codec import Section, Values, whole_section
from gradsieve.parameters.parameter import ParameterState


class WholeGroup:
    """The parameters of a bucket that travel whole, one behind the other.

    What bfloat16 rounds off their gradients is kept in `remainder` and added to the next gradient.
    It is in units of this rank's own gradient, whatever the exchange. The residuals of the
    parameters are views of it: when DDP puts its buckets together anew, the new group copies them.
    """

    whole: ClassVar[bool] = True
    row: ClassVar[int] = 0
    rotation: ClassVar[None] = None

    def __init__(self, parameters: Sequence[ParameterState], owner: int = 0) -> None:
        self.parameters = parameters
        self.owner = owner
        """The rank that adds up what all ranks send of it, where parts are dealt."""
        self.is_current = False
        """The parameters' residuals are views of this group's remainder."""
        self.named = [(parameter.name, parameter.numel) for parameter in parameters]
        self.numel = sum(parameter.numel for parameter in parameters)
        self._remainder = torch.empty(0, dtype=torch.float32, device=parameters[0].device)
        self._before: Tensor | None = None
        """The remainder before this step, where the step has changed it."""
        self._given: Tensor | None = None
        """What a step that fails leaves in the remainder."""
        self._numbers: Tensor | None = None

    @property
    def described(self) -> list[str]:
        """Lines of what both sides of a frame must share."""
        return [line for parameter in self.parameters for line in parameter.described]

    @property
    def remainder(self) -> Tensor:
        """float32 [numel], in the order in which gradients lie in the bucket."""
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
        """The gradients, float32 [numel], with all that was kept of those before.

        Args:
            scale: what a gradient of 1 is in `flat`.
            may_be_unused: a parameter whose gradient is zero throughout keeps its remainder, for
                DDP throws the result away where no rank used it.
            keeps_gradient: where the exchange fails, the gradients stay in the remainder as well.
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

    def keep(self, start: int, rest: Tensor) -> None:
        """Keep what a section has not carried of the elements from `start` on."""
        remainder = self.remainder
        if self._before is None:
            self._before = remainder.clone()
        remainder[start : start + rest.numel()] += rest.to(remainder.device)

    def decay(self, factor: float) -> None:
        """Multiply all that was kept."""
        self.remainder.mul_(factor)

    def commit(self) -> None:
        """The step is done."""
        self._before = self._given = None

    def undo(self) -> None:
        """The step leaves nothing behind."""
        if self._before is not None:
            self.remainder.copy_(self._before)
        self.commit()

    def recover(self) -> None:
        """The exchange failed; what never reached the optimizer is kept."""
        if self._before is not None and self._given is not None:
            finite = self._given.isfinite()
            self._before = torch.where(finite, self._given, self._before)
        self.undo()

    def _used(self, gradient: Tensor) -> Tensor:
        """Which elements belong to a parameter whose gradient is not zero throughout."""
        if self._numbers is None:
            numels = torch.tensor(
                [p.numel for p in self.parameters], dtype=torch.int64, device="cpu"
            )
            self._numbers = torch.repeat_interleave(numels).to(gradient.device)
        nonzero = torch.zeros(len(self.parameters), dtype=torch.int32, device=gradient.device)
        nonzero.index_add_(0, self._numbers, (gradient != 0).int())
        return nonzero[self._numbers] > 0


Unit = ParameterState | WholeGroup
"""What a section of a frame is of."""


def round_whole(values: Tensor, mode: Values) -> tuple[Section, Tensor | None]:
    """A section of all `values`, float32 on the CPU, and what it lacks of them; None: nothing."""
    section = whole_section(values.numpy(), mode)
    if section.is_exact:
        return section, None
    _, sent = section.survivors()
    # A difference of infinities is NaN; that step is taken back.
    return section, values - torch.from_numpy(sent)
