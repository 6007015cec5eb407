"""The protocol of a topology: who carries which piece, how frames travel, how long that takes."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradsieve.bucket.average import Contribution
from gradsieve.bucket.layout import BucketLayout
from gradsieve.bucket.plan import Plan
from gradsieve.bucket.step import Step
from gradsieve.exchange.all_reduce import AllReduce
from gradsieve.exchange.cost import Links
from gradsieve.exchange.groups import Groups
from gradsieve.exchange.topology_names import Exchange


class Topology(ABC):
    """A way for gradients to travel between ranks. It has no state, so one object serves all."""

    name: ClassVar[Exchange]
    """The name, by which users choose it."""

    def connect(self, groups: Groups) -> None:
        """Make the process groups that it needs.

        All ranks must call it together, at the beginning of a step.
        """
        del groups

    @abstractmethod
    def seconds(self, links: Links, bucket_bytes: float, frame_bytes: float) -> float:
        """Return the predicted seconds of exchanging one bucket; infinite if it is impossible.

        Args:
            bucket_bytes: the bytes of the gradients of the bucket.
            frame_bytes: the bytes of a frame of the whole bucket.
        """


class DenseTopology(Topology):
    """Sends all elements of the gradients, with the residuals added."""

    element_size: ClassVar[int | None] = None
    """Bytes of an element on the link; None for those of an element of the buffer."""

    @abstractmethod
    def reduce(self, buffer: Tensor, groups: Groups) -> AllReduce:
        """Begin to average the buffer over all ranks."""

    def connect(self, groups: Groups) -> None:
        groups.connect_dense()


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one rank for one bucket, from which the lab predicts times."""

    made: float
    """Bytes that the rank encodes, as a multiple of a frame of the whole bucket."""
    read: float
    """Bytes that the rank decodes, as the same multiple."""
    selected: float
    """Elements that the rank selects from, as a multiple of those of the bucket."""
    sections: float
    """Number of sections in the frames that the rank encodes."""
    collectives: int
    """Number of collectives."""


@dataclass(frozen=True, slots=True)
class ToAll:
    """A request to send one frame to every rank.

    The answer has one part, with the frames of all ranks.
    """

    frame: Tensor


@dataclass(frozen=True, slots=True)
class ToEach:
    """A request to send each rank a frame of its own.

    The answer has one part, with the frames that all ranks have sent to this one.
    """

    frames: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class ToNodes:
    """A request to send the frame of one part to the ranks of all nodes.

    The answer has a part for each place in a node, with the frames of all nodes.
    """

    frame: Tensor


Request = ToAll | ToEach | ToNodes
Answer = list[list[Tensor]]
"""The frames that have arrived, for each part."""
Exchanging = Generator[Request, Answer, list[Contribution]]
"""An exchange that yields its requests, receives the answers, and returns the contributions.

Its caller decides how frames travel: between processes, or within one.
"""


class FrameTopology(Topology):
    """Sends frames, which carry the survivors."""

    of_nodes: ClassVar[bool] = False
    """Whether the ranks of a node average their gradients before they select, and share one
    residual."""
    prunes_sums: ClassVar[bool] = False
    """Whether a rank prunes the sums of its part, and keeps their rest."""

    def place(self, groups: Groups) -> tuple[int, int]:
        """Return the number of this rank's part of a bucket, and the number of all parts."""
        return self.place_of(groups.group.rank(), groups.group.size())

    @abstractmethod
    def place_of(self, rank: int, ranks: int) -> tuple[int, int]:
        """Return what `place` returns for any rank, where each rank is a node of its own."""

    @abstractmethod
    def plan(self, layout: BucketLayout, place: int, places: int) -> Plan:
        """Divide a bucket into parts. `place` and `places` are those that `place` has returned."""

    def prepare(self, step: Step, plan: Plan, buffer: Tensor, groups: Groups) -> None:
        """Prepare the gradients of a bucket for the selection; most topologies do nothing."""

    @abstractmethod
    def exchange(self, step: Step, plan: Plan, frames: Sequence[Tensor]) -> Exchanging:
        """Exchange frames with the other ranks, as requests to the caller.

        Args:
            frames: a frame for each of the plan's own parts.

        Returns:
            A generator; see `Exchanging`.
        """

    @abstractmethod
    def work(self, links: Links, parameters: float, elements: float) -> Work:
        """Return the work of a rank for a bucket of so many parameters and elements."""


AnyTopology = DenseTopology | FrameTopology
