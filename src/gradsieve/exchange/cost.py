"""Predict the time of an exchange from latency and rate (the α–β model)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkCost:
    """The cost of the link of each rank, the same in both directions.

    The model is that of R. Thakur, R. Rabenseifner, W. Gropp: Optimization of Collective
    Communication Operations in MPICH, IJHPCA 19(1), 2005, section 3.
    """

    latency: float
    """Seconds of an empty message from one rank to another, including the overhead of the
    collective."""
    rate: float
    """Bytes per second that a rank sends or receives."""

    def gather(self, ranks: int, frame_bytes: float) -> float:
        """Return the seconds until every rank has the sizes and then the frames of all others."""
        return 2 * self.latency + (ranks - 1) * frame_bytes / self.rate

    def two_shot(self, ranks: int, frame_bytes: float) -> float:
        """Return the seconds until every part has reached its owner, and every sum all ranks."""
        return 4 * self.latency + 2 * (ranks - 1) / ranks * frame_bytes / self.rate

    def all_reduce(self, ranks: int, size: float) -> float:
        """Return the seconds of a ring all-reduce of `size` bytes."""
        steps = 2 * (ranks - 1)
        return steps * self.latency + steps / ranks * size / self.rate


@dataclass(frozen=True, slots=True)
class NodeCost:
    """The costs of the links within a node and between nodes."""

    size: int
    """Number of ranks of a node."""
    within: LinkCost
    """The cost of a link within a node."""
    across: LinkCost
    """The cost of a rank's share of the link between nodes, while all ranks of its node use it."""

    def hierarchical(self, ranks: int, bucket_bytes: float, frame_bytes: float) -> float:
        """Return the seconds until nodes have added up and every rank has the parts of all nodes.

        Args:
            bucket_bytes: the bytes of the gradients of the bucket.
            frame_bytes: the bytes of a frame of the whole bucket.
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
    """Number of ranks."""
    everyone: LinkCost
    """The cost of a link between any two ranks, while all of them exchange."""
    nodes: NodeCost | None = None
    """The costs within and between nodes; None if the ranks do not form nodes."""
