"""The two-shot topology, whose traffic does not grow with the world size.

First every part of a bucket travels to its owner. The owner adds it up, prunes the sum and sends
that to all ranks.
"""

from collections.abc import Sequence

from torch import Tensor

from gradsieve.bucket.average import Contribution
from gradsieve.bucket.layout import BucketLayout
from gradsieve.bucket.plan import SMALLEST_PIECE, Plan, dealt_to
from gradsieve.bucket.step import Step
from gradsieve.bucket.sums import frame_of_sums
from gradsieve.exchange.cost import Links
from gradsieve.topology.reading import read_frame
from gradsieve.topology.topology import Exchanging, FrameTopology, ToAll, ToEach, Work


class TwoShot(FrameTopology):
    """Sends each part to its owner and each pruned sum to all. Latency doubles."""

    name = "two-shot"
    prunes_sums = True

    def place_of(self, rank: int, ranks: int) -> tuple[int, int]:
        return rank, ranks

    def plan(self, layout: BucketLayout, place: int, places: int) -> Plan:
        return Plan(layout, dealt_to(layout.units, places), place, prunes_sums=places > 1)

    def exchange(self, step: Step, plan: Plan, frames: Sequence[Tensor]) -> Exchanging:
        (arrived,) = yield ToEach(frames)
        with step.clock.timed("decode"):
            mine = [
                read_frame(step, plan, frame, plan.place, own=frame is frames[plan.place])
                for frame in arrived
            ]
            sums = frame_of_sums(step, plan, mine)
        (arrived,) = yield ToAll(sums)
        with step.clock.timed("decode"):
            return [
                Contribution(read_frame(step, plan, frame, owner, own=frame is sums), part, 1.0)
                for owner, (frame, part) in enumerate(zip(arrived, plan.parts, strict=True))
            ]

    def seconds(self, links: Links, bucket_bytes: float, frame_bytes: float) -> float:
        return links.everyone.two_shot(links.ranks, frame_bytes)

    def work(self, links: Links, parameters: float, elements: float) -> Work:
        # A rank encodes its own frame and one part of the sum. It decodes its part of every frame
        # and the sums of all parts: each is as much as one frame.
        ranks = links.ranks
        return Work(
            made=1 + 1 / ranks,
            read=2.0,
            selected=1 + 1 / ranks,
            sections=min(ranks * parameters, parameters + elements / SMALLEST_PIECE),
            collectives=2,
        )
