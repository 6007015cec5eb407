"""What residuals consist of: a rank may keep in its weights only what is its own."""

from collections.abc import Sequence

from gradsieve.saved.outer import BESIDE_SUMS, OWN, SHARED
from gradsieve.topology import AnyTopology, DenseTopology


class Rests:
    """Knows for each fragment what a rank's residual has come to contain.

    It is the rank's own at first. A two-shot exchange keeps the rest of sums beside it, and the
    two become one when the bases turn, or when another topology follows. The ranks of a node share
    one residual. A dense exchange sends everything.
    """

    def __init__(self, fragments: int) -> None:
        self.contents = [OWN] * fragments

    def follow(self, fragment: int, topology: AnyTopology, *, rotates: bool) -> None:
        """Note that a fragment is exchanged with a topology."""
        self.contents[fragment] = content_after(self.contents[fragment], topology, rotates)

    def are_own(self, fragment: int) -> bool:
        """Return whether the residuals of a fragment contain this rank's own gradients alone."""
        return self.contents[fragment] != SHARED

    def load(self, contents: Sequence[str]) -> None:
        """Restore `contents` as they were saved."""
        self.contents = list(contents)


def content_after(before: str, topology: AnyTopology, rotates: bool) -> str:
    if isinstance(topology, DenseTopology):
        return OWN
    if before == SHARED or topology.of_nodes:
        return SHARED
    if topology.prunes_sums:
        return SHARED if rotates else BESIDE_SUMS
    return OWN if before == OWN else SHARED
