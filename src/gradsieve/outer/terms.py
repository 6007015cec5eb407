"""What the ranks of local steps must have alike, compared when they meet."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from gradsieve.bucket.shards import described
from gradsieve.exchange.agreement import Description, require_agreement
from gradsieve.exchange.managed import AnyGroup
from gradsieve.outer.schedule import Schedule
from gradsieve.state import SieveState


class Terms:
    """The tensors, the options and the outer optimizer of an `OuterSync`.

    All ranks of a group must call a method together. Each raises what `require_agreement` raises.

    Args:
        named: the names of trained parameters and of buffers.
    """

    def __init__(
        self, named: Sequence[tuple[str, Tensor]], schedule: Schedule, state: SieveState
    ) -> None:
        self._lines = tuple(described(name, tensor) for name, tensor in named)
        self._schedule, self._state = schedule, state

    def require_alike(self, group: AnyGroup) -> None:
        settings = (*self._schedule.settings, *self._state.sieve.settings)
        require_agreement(Description(settings=settings, parameters=self._lines), group)

    def require_alike_optimizer(self, optimizer: Optimizer, group: AnyGroup) -> None:
        made = f"optimizer={type(optimizer).__name__} {optimizer.defaults}"
        require_agreement(Description(settings=(made,), parameters=()), group)
