"""Find the rank that came last to an exchange, although ranks share no clock."""

import time
from collections.abc import Callable

from gradsieve.exchange.groups import Groups
from gradsieve.exchange.notes import Notes


class Arrivals:
    """Compares the times that the ranks took since they last met, a moment that they share.

    All ranks must make one together. It has a process group of its own, apart from the one in
    which frames travel.
    """

    def __init__(self, groups: Groups) -> None:
        self._exchange = groups.open_another(Notes([0.0]))
        self._met = time.perf_counter()
        self.slowest_rank = 0
        """The rank whose time since the meeting before was longest, in the last meeting."""
        self.waited_seconds = 0.0
        """Seconds that this rank waited in the last meeting."""

    def come(self) -> Callable[[], None]:
        """Stop the time of this rank, and return the meeting for the communication thread."""
        took = time.perf_counter() - self._met
        return lambda: self._meet(took)

    def _meet(self, took: float) -> None:
        notes = self._exchange.notes
        notes.mine, notes.seconds = [took], 0.0
        self._exchange.exchange_sizes([0] * self._exchange.world_size)
        self._met, self.waited_seconds = time.perf_counter(), notes.seconds
        seconds = [seconds for (seconds,) in notes.heard]
        self.slowest_rank = seconds.index(max(seconds))
