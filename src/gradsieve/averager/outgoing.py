"""The buckets of an `Averager`: which gradients have come, and which buckets are under way."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradsieve.bucket.flat import FlatBucket, buckets_of, kind_of
from gradsieve.parameters.registry import Registry
from gradsieve.runtime.devices import Handover

Send = Callable[[FlatBucket], torch.futures.Future[Tensor]]
"""Begins to exchange a bucket."""


class Outgoing:
    """Buckets that are sent in their order, each as soon as all its gradients have come.

    The buckets hold the parameters from the last to the first, as a backward pass computes their
    gradients, dtype by dtype.

    Args:
        held: the trained parameters.
        registry: the registry that knows them.
    """

    def __init__(self, held: Sequence[Tensor], registry: Registry) -> None:
        from_last = range(len(held) - 1, -1, -1)
        kinds = list(dict.fromkeys(kind_of(held[number]) for number in from_last))
        order = sorted(from_last, key=lambda number: kinds.index(kind_of(held[number])))
        self.buckets = buckets_of([held[number] for number in order])
        self.views = list(held)
        """A view of a bucket's buffer for each parameter, in its shape."""
        self._bucket_of = [0] * len(held)
        numbers = iter(order)
        for bucket in self.buckets:
            for flat, parameter in zip(bucket.gradients(), bucket.parameters(), strict=True):
                number = next(numbers)
                state = registry.known(parameter)
                assert state is not None
                self.views[number] = flat.as_strided(
                    state.shape, state.stride, flat.storage_offset()
                )
                self._bucket_of[number] = bucket.number
        self._futures: list[torch.futures.Future[Tensor]] = []
        self._has_come = [False] * len(held)
        self._lacking: list[int] = []
        self._copied: list[list[Handover]] = []
        """The copies of gradients into each bucket. On a device, backward passes compute them on
        several streams."""
        self.clear()

    def clear(self) -> None:
        """Begin anew, before a step."""
        self._futures = []
        self._has_come = [False] * len(self.views)
        self._lacking = [len(bucket.parameters()) for bucket in self.buckets]
        self._copied = [[] for _ in self.buckets]

    @property
    def has_any_come(self) -> bool:
        """Whether a gradient has come in this step."""
        return any(self._has_come)

    def has_come(self, number: int) -> bool:
        """Return whether the gradient of a parameter has come in this step."""
        return self._has_come[number]

    @torch.no_grad()
    def come(self, number: int, gradient: Tensor | None, send: Send) -> None:
        """Take the gradient of a parameter, and send the buckets that are complete with it.

        Args:
            number: the place of the parameter in `held`.
            gradient: None counts as zeros.
        """
        view = self.views[number]
        if gradient is None:
            view.zero_()
        else:
            view.copy_(gradient)
        self._has_come[number] = True
        self._lacking[self._bucket_of[number]] -= 1
        self._copied[self._bucket_of[number]].append(Handover(view.device))
        while (sent := len(self._futures)) < len(self.buckets) and not self._lacking[sent]:
            for copy in self._copied[sent]:
                copy.join()
            self._futures.append(send(self.buckets[sent]))

    def wait(self) -> None:
        """Wait for the averages. On a device this orders streams and does not block."""
        for future in self._futures:
            future.wait()
