"""Check in every step that all ranks use the same topology, at no cost while they do."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from gradsieve.errors import MismatchError
from gradsieve.exchange.collectives import ranks_of
from gradsieve.exchange.managed import AnyGroup, ManagedGroup
from gradsieve.exchange.meeting import DIFFER, Meeting, in_words
from gradsieve.exchange.store import within
from gradsieve.exchange.topology_names import EXCHANGES, Exchange

SECONDS = 5.0
"""Seconds that a rank which has found a difference waits for the others to name their topology."""
_made: "WeakKeyDictionary[AnyGroup, int]" = WeakKeyDictionary()
"""The number of the last accord of each group."""


class Accord:
    """The topology (or "auto") that the ranks of a group have agreed on.

    When the user sets another topology on a rank, the rank tells all others in place of the size
    of a frame, as a negative number. A rank on which it was set, too, tells the same. A rank on
    which it was not set tells the size of a frame, or waits in another collective. A rank that
    waits for long writes its topology to the store of the job, where the others compare it.

    All ranks of `group` must make one together.
    """

    def __init__(self, group: AnyGroup, exchange: Exchange) -> None:
        self._group = group
        self._number = _made[group] = _made.get(group, -1) + 1
        self._ranks = ranks_of(group)
        self._agreed = self._mine = exchange
        self._step = self._begun = 0
        self._meeting: Meeting | None = None
        self._hears_nothing = isinstance(group, ManagedGroup)
        """Whether the store has stopped answering, or there is none."""

    def begin(self, step: int, mine: Exchange) -> None:
        if self._meeting is not None:
            # All ranks have finished the step before, so nobody needs its meeting any more.
            within(SECONDS, self._meeting.forget)
        self._step, self._mine = step, mine
        self._begun += 1
        self._meeting = None

    @property
    def is_changed(self) -> bool:
        """Whether another topology was set on this rank since the ranks agreed."""
        return self._mine != self._agreed

    @property
    def code(self) -> int:
        """The negative number that stands for the topology of this rank."""
        return -1 - EXCHANGES.index(self._mine)

    def hear(self, sizes: Sequence[int]) -> None:
        """Look at the numbers that all ranks have told, which are sizes of frames or codes.

        Raises:
            MismatchError: the topologies of the ranks differ.
        """
        if min(sizes) < 0:
            told = [exchange_of(size) if size < 0 else self._agreed for size in sizes]
            self._require_alike(dict(zip(self._ranks, told, strict=True)))
            self._agreed = self._mine

    def look(self) -> None:
        """Find out, after a long wait or a failure, whether the topologies of the ranks differ.

        Raises:
            MismatchError: they do.
        """
        if self._hears_nothing:
            return
        said = within(2 * SECONDS, self._words)
        self._hears_nothing = said is None
        self._require_alike(said or {})

    def _words(self) -> dict[int, str]:
        """Return the topology of each rank if they differ, else nothing."""
        if self._meeting is None and not isinstance(self._group, ManagedGroup):
            name = f"accord/{self._number}/{self._begun}"
            self._meeting = Meeting(self._group, name)
        if self._meeting is None:
            return {}
        self._meeting.come(self._mine)
        return self._meeting.words(SECONDS) if self._meeting.verdict() == DIFFER else {}

    def _require_alike(self, said: dict[int, str]) -> None:
        if len({*said.values()}) > 1:
            raise MismatchError(
                f"the ranks exchange in different ways in step {self._step} ({in_words(said)}): "
                "set state.exchange alike on all ranks, between the same two steps"
            )


def exchange_of(code: int) -> str:
    number = -1 - code
    if number < len(EXCHANGES):
        return EXCHANGES[number]
    return "an exchange that this version does not know"
