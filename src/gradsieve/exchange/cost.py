"""How long an exchange takes, by latency and rate (the α–β model)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkCost:
    """The cost of each rank's link, the same in both directions.

    R. Thakur, R. Rabenseifner, W. Gropp: Optimization of Collective Communication Operations in
    MPICH, IJHPCA 19(1), 2005, section 3.
    """

    latency: float
    """Seconds from one rank to another, with the overhead of the collective."""
    rate: float
    """Bytes per second."""

    def gather(self, ranks: int, frame_bytes: float) -> float:
        """Return the seconds until every rank has every other's frame, sizes first."""
        return 2 * self.latency + (ranks - 1) * frame_bytes / self.rate

    def two_shot(self, ranks: int, frame_bytes: float) -> float:
        """Return the seconds until every part has been to its owner, and from there to all."""
        return 4 * self.latency + 2 * (ranks - 1) / ranks * frame_bytes / self.rate

    def all_reduce(self, ranks: int, size: float) -> float:
        """Return the seconds of a ring all-reduce of `size` bytes."""
        steps = 2 * (ranks - 1)
        return steps * self.latency + steps / ranks * size / self.rate


@dataclass(frozen=True, slots=True)
class NodeCost:
    """The costs of links within a node and between nodes."""

    size: int
    """The number of ranks of a node."""
    within: LinkCost
    across: LinkCost
    """The cost of a rank's link while all ranks of its node use the node's link."""

    def hierarchical(self, ranks: int, bucket_bytes: float, frame_bytes: float) -> float:
        """Return the seconds until a node has added up and every rank has all parts of all nodes.

        Args:
            frame_bytes: the size of a frame of the whole bucket.
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
