"""The dense topologies: plain all-reduces, as without the sieve."""

from torch import Tensor

from gradsieve.exchange.all_reduce import AllReduce
from gradsieve.exchange.cost import Links
from gradsieve.exchange.groups import Groups
from gradsieve.topology.topology import DenseTopology


class Dense(DenseTopology):
    """All-reduces gradients in their own dtype."""

    name = "dense"

    def reduce(self, buffer: Tensor, groups: Groups) -> AllReduce:
        return AllReduce(buffer, groups.dense, half=False)

    def seconds(self, links: Links, bucket_bytes: float, frame_bytes: float) -> float:
        return links.everyone.all_reduce(links.ranks, bucket_bytes)


class DenseHalf(DenseTopology):
    """All-reduces gradients in float16. The rounding error is lost."""

    name = "dense-fp16"
    element_size = 2

    def reduce(self, buffer: Tensor, groups: Groups) -> AllReduce:
        return AllReduce(buffer, groups.dense, half=True)

    def seconds(self, links: Links, bucket_bytes: float, frame_bytes: float) -> float:
        return links.everyone.all_reduce(links.ranks, bucket_bytes / 2)
