"""The gather topology: every rank sends its frame to every other rank."""

from collections.abc import Sequence

from torch import Tensor

from gradsieve.bucket.layout import BucketLayout
from gradsieve.bucket.plan import Plan, undivided
from gradsieve.bucket.step import Step
from gradsieve.exchange.cost import Links
from gradsieve.topology.reading import averaged
from gradsieve.topology.topology import Exchanging, FrameTopology, ToAll, Work


class Gather(FrameTopology):
    """Sends one frame of the whole bucket to all. Traffic grows with the world size."""

    name = "gather"

    def place_of(self, rank: int, ranks: int) -> tuple[int, int]:
        return 0, 1

    def plan(self, layout: BucketLayout, place: int, places: int) -> Plan:
        return Plan(layout, undivided(layout.units))

    def exchange(self, step: Step, plan: Plan, frames: Sequence[Tensor]) -> Exchanging:
        (frame,) = frames
        arrived = yield ToAll(frame)
        return averaged(step, plan, arrived, own=frame)

    def seconds(self, links: Links, bucket_bytes: float, frame_bytes: float) -> float:
        return links.everyone.gather(links.ranks, frame_bytes)

    def work(self, links: Links, parameters: float, elements: float) -> Work:
        return Work(
            made=1.0,
            read=float(links.ranks),
            selected=1.0,
            sections=parameters,
            collectives=1,
        )
