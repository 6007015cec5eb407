"""Numbers that travel with the sizes of frames."""

from collections.abc import Sequence


class Notes:
    """Numbers that every rank tells all others with the sizes of its frames.

    Args:
        mine: this rank's numbers, as many as on all ranks.
    """

    def __init__(self, mine: Sequence[float] = ()) -> None:
        self.mine = list(mine)
        self.heard = [self.mine]
        """The last numbers of all ranks."""
        self.seconds = 0.0
        """Seconds of all exchanges of sizes, in which ranks wait for the last one."""
