"""Notes: the numbers that travel with the sizes of frames, without a collective of their own."""

from collections.abc import Sequence


class Notes:
    """The numbers that every rank tells all others with the sizes of its frames.

    Args:
        mine: the numbers of this rank. All ranks must have equally many.
    """

    def __init__(self, mine: Sequence[float] = ()) -> None:
        self.mine = list(mine)
        self.heard = [self.mine]
        """The numbers that all ranks have told last."""
        self.seconds = 0.0
        """Seconds of all exchanges of sizes, including the wait for the last rank."""
