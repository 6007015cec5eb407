"""What a method is: ranks train together by it, and a line of text names it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.lab.methods.played.compressor import Compressor
from gradsieve.lab.methods.played.synchronous import PlayedTraining, Synchronous
from gradsieve.lab.workloads.replica import Replica
from gradsieve.outer import OuterSync
from gradsieve.state import SieveState


class Method:
    """A method with its options.

    Args:
        options: the text behind the colon, "4" in "powersgd:4".

    Raises:
        ValueError: the options are written otherwise, or a number is out of range.
    """

    form: ClassVar[str]
    """How it is written, "powersgd:RANK"; its name stands before the colon."""
    trains_together: ClassVar[bool] = True
    """Whether the ranks have a common model in the end."""

    def __init__(self, options: str = "") -> None:
        if options:
            raise ValueError(f"{self.form} takes no options, got {options!r}")

    @property
    def phase(self) -> int:
        """The number of steps from one exchange to the next."""
        return 1


def nothing() -> None:
    """The backward pass has averaged the gradients, or nothing does."""


class Prepared(NamedTuple):
    model: nn.Module
    """The model to train: the given one, perhaps cut into shards, or DDP around it."""
    state: SieveState | None = None
    outer: OuterSync | None = None
    average: Callable[[], object] = nothing
    """Called between each backward pass and the update."""


class Distributed(Method, ABC):
    """A method for real ranks, over torch.distributed."""

    shards: ClassVar[bool] = False
    """Whether the ranks of a node hold one model together, which none can evaluate alone."""

    @abstractmethod
    def prepare(self, model: nn.Module) -> Prepared:
        """Make `model` exchange by this method; every rank calls it.

        It may replace the model's parameters, so that the optimizer is made afterwards.
        """

    def require_possible(self) -> None:
        """Raise ValueError where the options cannot be used by real ranks."""

    def require_nodes(self, ranks: int, ranks_per_node: int) -> None:
        """Raise ValueError where ranks on such nodes cannot use the method."""


def in_ddp(model: nn.Module, bucket_cap_mb: float | None = None) -> DistributedDataParallel:
    return DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb, gradient_as_bucket_view=True)


class Played(Method, ABC):
    """A method whose ranks are played in one process."""

    @abstractmethod
    def play(self, replica: Replica, ranks: int) -> PlayedTraining:
        """Return the training of ranks that begin as `replica`.

        Raises:
            ValueError: the options do not suit the model, or ask for a link.
        """


class PlayedInStep(Played):
    """A played method whose ranks average their gradients in every step."""

    @abstractmethod
    def compressor(self, parameters: Sequence[Tensor], ranks: int) -> Compressor:
        """Return what averages gradients shaped like `parameters`."""

    def play(self, replica: Replica, ranks: int) -> PlayedTraining:
        return Synchronous(replica, self.compressor(list(replica.model.parameters()), ranks))
