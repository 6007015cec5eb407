"""Average the statistics that a model keeps beside its parameters, such as running means."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradsieve.errors import SieveError
from gradsieve.exchange.collectives import begin_all_reduce
from gradsieve.exchange.frames import unreachable
from gradsieve.exchange.managed import AnyGroup


class Buffers:
    """The buffers of floating dtype in the state of a model.

    Other buffers (caches) are not averaged, because they are the same on all ranks.
    """

    def __init__(self, model: nn.Module) -> None:
        kept = model.state_dict(keep_vars=True).keys()
        self._model = model
        self._names = [
            name
            for name, buffer in model.named_buffers()
            if name in kept and buffer.is_floating_point()
        ]

    def now(self) -> list[Tensor]:
        """Return the buffers. A model that moves to another device or dtype replaces them."""
        buffers = dict(self._model.named_buffers())
        return [buffers[name] for name in self._names]


class BufferAverage:
    """An all-reduce of the buffers as they are when it is made."""

    def __init__(self, buffers: Sequence[Tensor], group: AnyGroup) -> None:
        self._group = group
        self._works: list[dist.Work] = []
        self.sums: list[Tensor] = []
        """One flat float64 tensor for each device. Each rank divides its own before the sum, which
        could overflow otherwise: masks hold very large numbers."""
        for device in {buffer.device: None for buffer in buffers}:
            own = [buffer for buffer in buffers if buffer.device == device]
            # In float64, a number that is the same on all ranks stays the same float32.
            flat = torch.cat([b.detach().reshape(-1).to(torch.float64) for b in own])
            self.sums.append(flat / group.size())

    def begin(self) -> None:
        """Begin the all-reduce.

        Raises:
            ExchangeError: a rank has died or stalled.
        """
        group = self._group
        try:
            for own in self.sums:
                work = begin_all_reduce(own, group)
                if work is not None:
                    self._works.append(work)
        except RuntimeError as error:
            raise unreachable(group, error) from error

    def wait(self) -> list[Tensor]:
        """Wait for the averages, and return one flat float64 tensor for each device.

        Raises:
            ExchangeError: a rank has died or stalled.
            SieveError: on every rank, where an average is NaN.
        """
        try:
            for work in self._works:
                work.wait()
        except RuntimeError as error:
            raise unreachable(self._group, error) from error
        if any(bool(average.isnan().any()) for average in self.sums):
            raise SieveError(
                "statistics that the model keeps (a running mean or variance) are NaN on a rank; "
                "no rank has taken them over. Go back to a checkpoint."
            )
        return self.sums


def empty_averages(buffers: Sequence[Tensor]) -> list[Tensor]:
    """Return uninitialized tensors of the layout that `BufferAverage.wait` returns."""
    sizes: dict[torch.device, int] = {}
    for buffer in buffers:
        sizes[buffer.device] = sizes.get(buffer.device, 0) + buffer.numel()
    return [torch.empty(n, dtype=torch.float64, device=device) for device, n in sizes.items()]


@torch.no_grad()
def assign(buffers: Sequence[Tensor], averages: Sequence[Tensor]) -> None:
    """Replace the buffers by the averages. What inner steps have added meanwhile is dropped."""
    for average in averages:
        own = [buffer for buffer in buffers if buffer.device == average.device]
        parts = torch.split(average, [buffer.numel() for buffer in own])
        for buffer, part in zip(own, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
