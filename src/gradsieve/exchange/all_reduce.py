"""The average of a buffer over all ranks, which dense topologies use."""

import torch
from torch import Tensor

from gradsieve.exchange.collectives import begin_all_reduce
from gradsieve.exchange.managed import AnyGroup
from gradsieve.exchange.stall import Look, leave, wait_for_work
from gradsieve.runtime.devices import future_on


class AllReduce:
    """An all-reduce of `buffer`, which begins when the object is made.

    torch's own hooks give DDP a future with a callback in Python. The thread of Gloo frees that
    callback after everyone has seen the result; if the process is ending by then, it is aborted.
    Here the collective holds no Python object: the training thread waits for it and sets the
    result.

    Args:
        half: whether to add up in float16. This halves the bytes; the rounding error is lost.
    """

    def __init__(self, buffer: Tensor, group: AnyGroup, *, half: bool) -> None:
        self._buffer = buffer
        self._sum = (buffer.to(torch.float16) if half else buffer).div_(group.size())
        self._work = begin_all_reduce(self._sum, group)
        self.average = future_on(buffer.device)
        """A future of `buffer`, done after `finish`."""

    def finish(self, look: Look) -> Tensor:
        """Wait for the average and return the buffer.

        Args:
            look: a function that is called now and then during the wait. It may raise an error,
                which ends the wait.

        Raises:
            RuntimeError: the all-reduce has failed.
        """
        if self._work is not None and self._buffer.is_cpu:
            wait_for_work(self._work, look)
        elif self._work is not None:
            # On a device this orders streams and does not block.
            self._work.wait()
        if self._sum is not self._buffer:
            self._buffer.copy_(self._sum)
        self.average.set_result(self._buffer)
        return self._buffer

    def leave(self) -> None:
        """Wait no longer. The process waits for the collective when it ends."""
        if self._work is not None:
            leave(self._work)
