"""Statistics that a model keeps beside its parameters: averaged, where they are numbers."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradsieve.errors import SieveError
from gradsieve.exchange.frames import unreachable


def averaged_buffers(model: nn.Module) -> list[Tensor]:
    """Of floating dtype, and a part of the model's state: a cache is the same on all ranks."""
    kept = model.state_dict(keep_vars=True).keys()
    return [
        buffer
        for name, buffer in model.named_buffers()
        if name in kept and buffer.is_floating_point()
    ]


class BufferAverage:
    """An all-reduce of buffers, under way since it was made.

    Raises:
        ExchangeError: a rank has died or stalled.
    """

    def __init__(self, buffers: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        self._group = group
        self._works: list[dist.Work] = []
        self.sums: list[Tensor] = []
        """Flat, one a device, float64; a rank's own are divided before: a mask's are large."""
        try:
            for device in {buffer.device: None for buffer in buffers}:
                own = [buffer for buffer in buffers if buffer.device == device]
                # What is the same on all ranks stays the same float32, whatever their number.
                flat = torch.cat([b.detach().reshape(-1).to(torch.float64) for b in own])
                self.sums.append(flat / group.size())
                work = dist.all_reduce(self.sums[-1], group=group, async_op=True)
                if work is not None:
                    self._works.append(work)
        except RuntimeError as error:
            raise unreachable(group, error) from error

    def wait(self) -> list[Tensor]:
        """The averages, flat, one a device.

        Raises:
            ExchangeError: a rank has died or stalled.
            SieveError: on every rank, where one is NaN.
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
    """Laid out as what `BufferAverage.wait` returns."""
    sizes: dict[torch.device, int] = {}
    for buffer in buffers:
        sizes[buffer.device] = sizes.get(buffer.device, 0) + buffer.numel()
    return [torch.empty(n, dtype=torch.float64, device=device) for device, n in sizes.items()]


@torch.no_grad()
def assign(buffers: Sequence[Tensor], averages: Sequence[Tensor]) -> None:
    """Replace the buffers; what was added to them since the averages began is dropped."""
    for average in averages:
        own = [buffer for buffer in buffers if buffer.device == average.device]
        parts = torch.split(average, [buffer.numel() for buffer in own])
        for buffer, part in zip(own, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
