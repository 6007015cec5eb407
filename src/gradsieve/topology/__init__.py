"""The topologies of an exchange, in a table by name.

A new topology is a class in a file of its own, an entry in `FRAMES` or `DENSE_TOPOLOGIES`, and its
name in `gradsieve.exchange.topology_names.Exchange`, in the same order.
"""

from collections.abc import Mapping

from gradsieve.exchange.topology_names import EXCHANGES
from gradsieve.topology.dense import Dense, DenseHalf
from gradsieve.topology.gather import Gather
from gradsieve.topology.hierarchical import Hierarchical
from gradsieve.topology.topology import AnyTopology, DenseTopology, FrameTopology
from gradsieve.topology.two_shot import TwoShot

__all__ = [
    "DENSE",
    "DENSE_HALF",
    "DENSE_TOPOLOGIES",
    "FRAMES",
    "GATHER",
    "HIERARCHICAL",
    "TOPOLOGIES",
    "AnyTopology",
    "DenseTopology",
    "FrameTopology",
]

GATHER, HIERARCHICAL = Gather(), Hierarchical()
DENSE, DENSE_HALF = Dense(), DenseHalf()
DENSE_TOPOLOGIES: tuple[DenseTopology, ...] = (DENSE, DENSE_HALF)
FRAMES: tuple[FrameTopology, ...] = (GATHER, TwoShot(), HIERARCHICAL)
TOPOLOGIES: Mapping[str, AnyTopology] = {
    **{topology.name: topology for topology in FRAMES},
    **{topology.name: topology for topology in DENSE_TOPOLOGIES},
}
assert ("auto", *TOPOLOGIES) == EXCHANGES
