"""Check in every step that all ranks use the same exchange."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch.distributed as dist

from gradsieve.errors import MismatchError
from gradsieve.exchange.meeting import DIFFER, Meeting, in_words
from gradsieve.exchange.names import EXCHANGES, Exchange
from gradsieve.exchange.store import within

SECONDS = 5.0
"""How long a rank that has found a difference waits for the others to say what they do."""
_made: "WeakKeyDictionary[dist.ProcessGroup, int]" = WeakKeyDictionary()


class Accord:
    """The exchange that the ranks of a group have agreed on.

    A rank whose exchange was set tells all others, in the sizes of frames: as a negative number.
    Ranks whose exchange was set as well tell the same; one that was not tells the size of a frame,
    or waits in another collective. Whoever waits for long says in the job's store what it does.

    All ranks of `group` must make one together.
    """

    def __init__(self, group: dist.ProcessGroup, exchange: Exchange) -> None:
        self._group = group
        self._number = _made[group] = _made.get(group, -1) + 1
        self._ranks = dist.get_process_group_ranks(group)
        self._agreed = self._mine = exchange
        self._step = self._begun = 0
        self._meeting: Meeting | None = None
        self._hears_nothing = False
        """The store does not answer."""

    def begin(self, step: int, mine: Exchange) -> None:
        if self._meeting is not None:
            # All ranks have come through the step before.
            within(SECONDS, self._meeting.forget)
        self._step, self._mine = step, mine
        self._begun += 1
        self._meeting = None

    @property
    def is_changed(self) -> bool:
        """This rank's exchange was set since the ranks agreed."""
        return self._mine != self._agreed

    @property
    def code(self) -> int:
        """The number that tells all ranks which exchange was set."""
        return -1 - EXCHANGES.index(self._mine)

    def hear(self, sizes: Sequence[int]) -> None:
        """Take what ranks have told: sizes of frames, or a code.

        Raises:
            MismatchError: they differ.
        """
        if min(sizes) < 0:
            told = [exchange_of(size) if size < 0 else self._agreed for size in sizes]
            self._require_alike(dict(zip(self._ranks, told, strict=True)))
            self._agreed = self._mine

    def look(self) -> None:
        """Ask after a long wait, or a failure, whether the ranks differ.

        Raises:
            MismatchError: a rank has said that it exchanges in another way.
        """
        if self._hears_nothing:
            return
        said = within(2 * SECONDS, self._words)
        self._hears_nothing = said is None
        self._require_alike(said or {})

    def _words(self) -> dict[int, str]:
        """Return what ranks have said if they differ, else nothing."""
        if self._meeting is None:
            name = f"accord/{self._number}/{self._begun}"
            self._meeting = Meeting(self._group, name)
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
