"""What an exchange takes: latency and rate (the α–β model)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkCost:
    """Of the link of each rank, the same both ways.

    R. Thakur, R. Rabenseifner, W. Gropp: Optimization of Collective Communication Operations in
    MPICH, IJHPCA 19(1), 2005, section 3.
    """

    latency: float
    """Seconds from a rank to another, and for the collective that carries them."""
    rate: float
    """Bytes a second."""

    def gather(self, ranks: int, frame_bytes: float) -> float:
        """Seconds until every rank has every other's frame, sizes first."""
        return 2 * self.latency + (ranks - 1) * frame_bytes / self.rate

    def two_shot(self, ranks: int, frame_bytes: float) -> float:
        """Seconds until every part has been to its owner, and from there to all."""
        return 4 * self.latency + 2 * (ranks - 1) / ranks * frame_bytes / self.rate

    def all_reduce(self, ranks: int, size: float) -> float:
        """Seconds of a ring over `size` bytes."""
        steps = 2 * (ranks - 1)
        return steps * self.latency + steps / ranks * size / self.rate


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Of nodes whose ranks share a machine."""

    size: int
    """Ranks of a node."""
    within: LinkCost
    across: LinkCost
    """Of a rank while all ranks of its node use the node's link."""

    def hierarchical(self, ranks: int, bucket_bytes: float, frame_bytes: float) -> float:
        """Seconds until a node has added up and every rank has all parts of all nodes.

        Args:
            frame_bytes: of a frame of the whole bucket.
        """
        nodes, part = ranks // self.size, frame_bytes / self.size
        return (
            self.within.all_reduce(self.size, bucket_bytes)
            + self.across.gather(nodes, part)
            + self.within.gather(self.size, nodes * part)
        )


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a group of ranks."""

    ranks: int
    everyone: LinkCost
    """Between any two ranks, when all of them exchange."""
    nodes: NodeCost | None = None
    """Within and across nodes; None where ranks are not told apart by node."""
