"""Which inner step begins an exchange, and which one ends it."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import index

from gradsieve.saved.fields import count
from gradsieve.saved.outer import SCHEDULE

Begin = Callable[[int, int], None]
"""Of a fragment, with the inner steps that go on until it ends."""
End = Callable[[], None]
LONGER, SHORTER = 1.25, 0.8
"""Times the phase, from one to the next."""
SCARCE, PLENTY = 3.0, 1.5
"""Standard deviations: a budget whose thresholds lie above would rather exchange more seldom, one
whose thresholds lie below more often."""


class Schedule:
    """A phase of `every` inner steps, in which each fragment of the model is exchanged once.

    Args:
        every: inner steps of a phase; or the least and the most, between which it is to be set.
        fragments: spread over the phase; the last one at its end.
        delay: inner steps from the beginning of an exchange to its end.

    Raises:
        TypeError: a number is not a whole one.
        ValueError: one is out of range, or an exchange would not end before the next begins.
    """

    def __init__(self, every: int | Sequence[int], fragments: int, delay: int) -> None:
        self.shortest, self.longest = bounds_of(every)
        self.fragments, self.delay = whole("fragments", fragments), whole("delay", delay)
        if self.fragments < 1:
            raise ValueError(f"fragments must be 1 or more, got {fragments}")
        if self.fragments > self.shortest:
            raise ValueError(
                f"{fragments} fragments cannot take turns within every={self.shortest} steps"
            )
        if not 0 <= self.delay <= self.shortest // self.fragments:
            raise ValueError(
                f"delay must be between 0 and {self.shortest // self.fragments} (every // "
                f"fragments: an exchange ends before the next begins), got {delay}"
            )
        self.every = self.shortest
        self.step = 0
        """Inner steps done."""
        self.place = 0
        """Of them, in this phase."""
        self.began = 0
        """Step that began the last exchange."""
        self.since = 0
        """Steps from the exchange before to that one; the same for those of one step."""
        self.ends: int | None = None
        """Step that is to end the exchange that is under way."""

    def advance(self, begin: Begin, end: End) -> None:
        """An inner step is done: end the exchange that is to end now, begin the one that is due."""
        self.step += 1
        self.place = self.place % self.every + 1
        if self.ends == self.step:
            self._end(end)
        fragment = self.fragment
        if fragment is not None:
            self._begin(fragment, self.delay, begin)
            if self.ends == self.step:
                self._end(end)

    def finish(self, begin: Begin, end: End) -> None:
        """Exchange now what was learned since; a new phase begins."""
        fresh = self.fragment if self.began == self.step else None
        if self.ends is not None:
            self._end(end)
        for fragment in range(self.fragments if self.place else 0):
            if fragment != fresh:
                self._begin(fragment, 0, begin)
                self._end(end)
        self.place = 0

    @property
    def fragment(self) -> int | None:
        """The one whose exchange is due at this step."""
        places = [self.every * (n + 1) // self.fragments for n in range(self.fragments)]
        return places.index(self.place) if self.place in places else None

    def _begin(self, fragment: int, delay: int, begin: Begin) -> None:
        self.since, self.began = self.step - self.began or self.since, self.step
        begin(fragment, delay)
        self.ends = self.step + delay

    def _end(self, end: End) -> None:
        self.ends = None
        end()

    def follow(self, scale: float) -> None:
        """Set the next phase's length, at the end of one, by what a budget's thresholds are."""
        if self.place != self.every:
            return
        if scale > SCARCE:
            wanted = math.ceil(LONGER * self.every)
        elif scale < PLENTY:
            wanted = math.floor(SHORTER * self.every)
        else:
            return
        self.every = max(self.shortest, min(self.longest, wanted))
        # The phase is over, whatever its length was.
        self.place = self.every

    @property
    def settings(self) -> tuple[str, ...]:
        """Lines of what must be alike on all ranks."""
        return (
            f"every={[self.shortest, self.longest]}",
            f"delay={self.delay}",
            f"fragments={self.fragments}",
        )

    def save(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in SCHEDULE}

    def require_fit(self, saved: Mapping[str, int | None]) -> None:
        """Raise ValueError where `load` cannot take what passed `require_schedule`."""
        count("schedule.every", saved["every"], self.shortest, self.longest)
        if saved["ends"] is not None:
            # Where every exchange ends at once none is under way.
            count("schedule.ends - began", saved["ends"] - (saved["began"] or 0), 1, self.delay)

    def load(self, saved: Mapping[str, int | None]) -> None:
        """What `require_fit` lets pass."""
        for name in SCHEDULE:
            setattr(self, name, saved[name])


def whole(name: str, number: object) -> int:
    try:
        return index(number)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {number!r}") from None


def bounds_of(every: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(every, Sequence) and not isinstance(every, str):
        if len(every) != 2:
            raise ValueError(f"every must be a number, or the least and the most, got {every!r}")
        shortest, longest = whole("every", every[0]), whole("every", every[1])
    else:
        shortest = longest = whole("every", every)
    if not 1 <= shortest <= longest:
        raise ValueError(f"every must be 1 or more, the least before the most, got {every!r}")
    return shortest, longest
