"""The hierarchical topology, for nodes of several ranks with a slow link between the nodes.

The ranks of a node average their gradients. Then each sends one part of them to the other nodes.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from gradsieve.bucket.encode import give_whole
from gradsieve.bucket.layout import BucketLayout
from gradsieve.bucket.plan import SMALLEST_PIECE, Plan, dealt_to
from gradsieve.bucket.step import Step
from gradsieve.exchange.cost import Links
from gradsieve.exchange.groups import Groups
from gradsieve.parameters.nonfinite import note_nonfinite
from gradsieve.topology.reading import averaged
from gradsieve.topology.topology import Exchanging, FrameTopology, ToNodes, Work


class Hierarchical(FrameTopology):
    """Sends each part of a bucket once per node over the link between the nodes."""

    name = "hierarchical"
    of_nodes = True

    def connect(self, groups: Groups) -> None:
        groups.connect_nodes()

    def place(self, groups: Groups) -> tuple[int, int]:
        return groups.nodes.place, groups.nodes.size

    def place_of(self, rank: int, ranks: int) -> tuple[int, int]:
        return 0, 1

    def plan(self, layout: BucketLayout, place: int, places: int) -> Plan:
        return Plan(layout, dealt_to(layout.units, places), place, of_node=True)

    def prepare(self, step: Step, plan: Plan, buffer: Tensor, groups: Groups) -> None:
        with step.clock.timed("add"):
            note_nonfinite(step.clock, plan.layout.named, buffer)
            give_whole(step, plan, buffer)
            groups.nodes.average(buffer)

    def exchange(self, step: Step, plan: Plan, frames: Sequence[Tensor]) -> Exchanging:
        (frame,) = frames
        arrived = yield ToNodes(frame)
        return averaged(step, plan, arrived, own=frame)

    def seconds(self, links: Links, bucket_bytes: float, frame_bytes: float) -> float:
        if links.nodes is None:
            return math.inf
        return links.nodes.hierarchical(links.ranks, bucket_bytes, frame_bytes)

    def work(self, links: Links, parameters: float, elements: float) -> Work:
        size = 1 if links.nodes is None else links.nodes.size
        pieces = min(size * parameters, parameters + elements / SMALLEST_PIECE)
        return Work(
            made=1 / size,
            read=links.ranks / size,
            selected=1 / size,
            sections=pieces / size,
            collectives=3,
        )
