"""Statistics that a model keeps beside its parameters: averaged, where they are numbers."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
        """float32, flat, one a device."""
        try:
            for device in {buffer.device: None for buffer in buffers}:
                flat = [b.detach().reshape(-1).float() for b in buffers if b.device == device]
                self.sums.append(torch.cat(flat))
                work = dist.all_reduce(self.sums[-1], group=group, async_op=True)
                if work is not None:
                    self._works.append(work)
        except RuntimeError as error:
            raise unreachable(group, error) from error

    def wait(self) -> list[Tensor]:
        """The averages, float32, flat, one a device; raises as the constructor."""
        try:
            for work in self._works:
                work.wait()
        except RuntimeError as error:
            raise unreachable(self._group, error) from error
        return [total / self._group.size() for total in self.sums]


@torch.no_grad()
def assign(buffers: Sequence[Tensor], averages: Sequence[Tensor]) -> None:
    """Replace the buffers; what was added to them since the averages began is dropped."""
    for average in averages:
        own = [buffer for buffer in buffers if buffer.device == average.device]
        parts = torch.split(average, [buffer.numel() for buffer in own])
        for buffer, part in zip(own, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
