"""The bucket: some parameters and the flat buffer of their gradients, exchanged together."""

from typing import Protocol

from torch import Tensor


class Bucket(Protocol):
    """The methods of ``torch.distributed.GradBucket``, which DDP gives to a hook."""

    def index(self) -> int:
        """Return the number of the bucket in its step, from 0."""

    def is_last(self) -> bool:
        """Return whether it is the last bucket of the step."""

    def parameters(self) -> list[Tensor]: ...

    def buffer(self) -> Tensor:
        """Return the gradients of all parameters, one behind the other, as a flat tensor."""

    def gradients(self) -> list[Tensor]:
        """Return a flat view of the buffer for each parameter, in the order of its memory."""
