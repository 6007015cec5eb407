"""The average of a buffer over all ranks, without the sieve."""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.exchange.stall import STALL, Look, leave
from gradsieve.runtime.devices import future_on


class AllReduce:
    """An all-reduce of `buffer`, under way since it was made.

    torch's own hooks give DDP a future with a callback in Python. Gloo's thread frees the callback
    after everyone has seen the result, and aborts a process that is ending by then. Here nothing in
    Python hangs on the collective: the training thread waits, and sets the result itself.

    Args:
        half: sum in float16; half the bytes, and what it rounds off is lost.
    """

    def __init__(self, buffer: Tensor, group: dist.ProcessGroup, *, half: bool) -> None:
        self._buffer = buffer
        self._sum = (buffer.to(torch.float16) if half else buffer).div_(group.size())
        self._work = dist.all_reduce(self._sum, group=group, async_op=True)
        self.average = future_on(buffer.device)
        """Done after `finish`, with `buffer`."""

    def finish(self, look: Look) -> Tensor:
        """Wait for the average; raises RuntimeError where the all-reduce has failed.

        Args:
            look: called now and then while the wait lasts; may raise what ends it.
        """
        if self._work is not None:
            self._wait(self._work, look)
        if self._sum is not self._buffer:
            self._buffer.copy_(self._sum)
        self.average.set_result(self._buffer)
        return self._buffer

    def leave(self) -> None:
        """Wait no more; the process does at its end."""
        if self._work is not None:
            leave(self._work)

    def _wait(self, work: dist.Work, look: Look) -> None:
        while self._buffer.is_cpu and not work.is_completed():
            try:
                work.wait(timedelta(seconds=STALL))
            except RuntimeError:
                # The time is over and it goes on, or it has ended, as the next `wait` says.
                if not work.is_completed():
                    look()
        # Raises what a completed one has failed for. On a device it orders streams only.
        work.wait()
