"""What the sieve takes over at once: some parameters and what is to be exchanged of them."""

from typing import Protocol

from torch import Tensor


class Bucket(Protocol):
    """As DDP gives to a hook (``torch.distributed.GradBucket``)."""

    def index(self) -> int:
        """0 for the first of a step."""

    def is_last(self) -> bool:
        """Of a step."""

    def parameters(self) -> list[Tensor]: ...

    def buffer(self) -> Tensor:
        """Flat: the gradients of the parameters, one behind the other."""

    def gradients(self) -> list[Tensor]:
        """Flat views of the buffer, a parameter's in its order in memory."""
