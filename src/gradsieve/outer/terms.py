"""What the ranks of local steps must have alike, compared when they meet."""

from torch import nn
from torch.optim import Optimizer

from gradsieve.bucket.shards import described
from gradsieve.exchange import outer_attendance
from gradsieve.exchange.agreement import Description, require_agreement
from gradsieve.exchange.managed import AnyGroup
from gradsieve.outer.schedule import Schedule
from gradsieve.saved.parameter_names import plain_names
from gradsieve.state import SieveState


class Terms:
    """The tensors, the options and the outer optimizer of an `OuterSync`.

    All ranks of a group must call a method together. Each raises what `require_agreement` raises.

    Args:
        model: the model, without DDP. Frozen parameters count, since ranks that are new take them.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, state: SieveState) -> None:
        parameters = dict(model.named_parameters())
        names = plain_names([*parameters])
        self._lines = (
            *(
                described_parameter(*named)
                for named in zip(names, parameters.values(), strict=True)
            ),
            *(described(name, buffer) for name, buffer in model.named_buffers()),
        )
        self._schedule, self._state = schedule, state

    def require_alike_at_start(self, *groups: AnyGroup) -> None:
        """Compare in each group, where all ranks make an OuterSync."""
        for group in groups:
            with outer_attendance(group):
                self.require_alike(group)

    def require_alike(self, group: AnyGroup) -> None:
        settings = (*self._schedule.settings, *self._state.sieve.settings)
        require_agreement(Description(settings=settings, parameters=self._lines), group)

    def require_alike_optimizer(self, optimizer: Optimizer, group: AnyGroup) -> None:
        made = f"optimizer={type(optimizer).__name__} {optimizer.defaults}"
        require_agreement(Description(settings=(made,), parameters=()), group)


def described_parameter(name: str, parameter: nn.Parameter) -> str:
    return described(name, parameter) + ("" if parameter.requires_grad else " (frozen)")
