"""What a topology is: who carries which piece, how frames travel, and how long they take."""

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
from gradsieve.exchange.names import Exchange


class Topology(ABC):
    """A way for gradients to travel between ranks. It keeps nothing: one object serves all."""

    name: ClassVar[Exchange]

    def connect(self, groups: Groups) -> None:
        """Make the process groups that it needs, at the beginning of a step, on all ranks."""
        del groups

    @abstractmethod
    def seconds(self, links: Links, bucket_bytes: float, frame_bytes: float) -> float:
        """The time of one bucket's exchange on these links; infinite where they do not allow it.

        Args:
            bucket_bytes: size of the gradients.
            frame_bytes: size of a frame of the whole bucket.
        """


class DenseTopology(Topology):
    """Everything travels, with what residuals hold."""

    element_size: ClassVar[int | None] = None
    """Bytes of an element on the link; None: as in the buffer."""

    @abstractmethod
    def reduce(self, buffer: Tensor, groups: Groups) -> AllReduce:
        """Begin to average the buffer over all ranks."""

    def connect(self, groups: Groups) -> None:
        groups.connect_dense()


@dataclass(frozen=True, slots=True)
class Work:
    """What a rank does for one bucket."""

    made: float
    """Bytes that it encodes, over those of a frame of the whole bucket."""
    read: float
    """Bytes that it decodes, over the same."""
    selected: float
    """Elements that it selects from, over those of the bucket."""
    sections: float
    """Sections of the frames that it encodes."""
    collectives: int


@dataclass(frozen=True, slots=True)
class ToAll:
    """A request to send one frame to every rank; the answer has one part, all ranks' frames."""

    frame: Tensor


@dataclass(frozen=True, slots=True)
class ToEach:
    """A request to send each rank a frame of its own; the answer has one part, for this rank."""

    frames: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class ToNodes:
    """A request to send the frame of a part to every rank.

    The answer has, for each place in a node, the frames of all nodes.
    """

    frame: Tensor


Request = ToAll | ToEach | ToNodes
Answer = list[list[Tensor]]
"""The frames that have arrived, by part."""
Exchanging = Generator[Request, Answer, list[Contribution]]
"""An exchange that yields its requests, is sent the answers, and returns what to add up.

Who runs it decides how frames travel: between processes, or within one.
"""


class FrameTopology(Topology):
    """Frames travel, with what passes the threshold."""

    of_nodes: ClassVar[bool] = False
    """The ranks of a node average their gradients before they select, and share one residual."""

    def place(self, groups: Groups) -> tuple[int, int]:
        """The place of this rank among those that divide a bucket, and their number."""
        return self.place_of(groups.group.rank(), groups.group.size())

    @abstractmethod
    def place_of(self, rank: int, ranks: int) -> tuple[int, int]:
        """As `place`, of any rank, where nodes do not count."""

    @abstractmethod
    def plan(self, layout: BucketLayout, place: int, places: int) -> Plan:
        """Divide a bucket; `place` and `places` as `place` has returned them."""

    def prepare(self, step: Step, plan: Plan, buffer: Tensor, groups: Groups) -> None:
        """Do what must be done with a bucket's gradients before they are selected from."""

    @abstractmethod
    def exchange(self, step: Step, plan: Plan, frames: Sequence[Tensor]) -> Exchanging:
        """Send this rank's frames, one for each of its own parts, and read those that arrive."""

    @abstractmethod
    def work(self, links: Links, parameters: float, elements: float) -> Work:
        """What a rank does for a bucket of as many parameters and elements."""


AnyTopology = DenseTopology | FrameTopology
