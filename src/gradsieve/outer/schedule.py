"""The schedule of local steps: which inner step begins an exchange, and which one ends it."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import index

from gradsieve.control.budget import Budget
from gradsieve.control.thresholds import Threshold
from gradsieve.saved.fields import count
from gradsieve.saved.outer import SCHEDULE

Begin = Callable[[int, int], None]
"""Begins the exchange of a fragment. Its arguments are the number of the fragment and the number
of inner steps until the exchange ends."""
End = Callable[[], None]
"""Ends the exchange that is under way."""
LONGER, SHORTER = 1.25, 0.8
"""Factors by which a phase grows or shrinks from one to the next."""
USUAL, LONGEST_USUAL = 20, 100
"""The number of inner steps of a phase if the user names none, and the most where it follows a
budget."""
SCARCE, PLENTY = 3.0, 1.5
"""Scales of a budget, in standard deviations. Above the first, phases grow, so that exchanges are
rarer; below the second they shrink."""


class Schedule:
    """A phase of `every` inner steps, in which each fragment of the model is exchanged once.

    Args:
        every: the number of inner steps of a phase, or the least and the most of them.
        fragments: the number of fragments. Their exchanges are spread over the phase, and the last
            one begins at its end.
        delay: the number of inner steps from the beginning of an exchange to its end.

    Raises:
        TypeError: a number is not a whole one.
        ValueError: a number is out of range, or an exchange would not end before the next begins.
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
        """Number of inner steps done."""
        self.place = 0
        """Number of inner steps done in this phase."""
        self.began = 0
        """Inner step after which the last exchange began."""
        self.since = 0
        """Number of inner steps between the last exchange and the one before it. Exchanges that
        begin at the same step share this number."""
        self.ends: int | None = None
        """Inner step that is to end the exchange under way; None if there is none."""

    def advance(self, begin: Begin, end: End) -> None:
        """Count an inner step, end the exchange that ends with it, and begin the one now due."""
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
        """Exchange every fragment that has moved since its last exchange, and begin a new phase."""
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
        """The number of the fragment whose exchange is due at this step; None if none is."""
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
        """Set the length of the next phase at the end of one, by the scale of a budget."""
        if self.place != self.every:
            return
        if scale > SCARCE:
            wanted = math.ceil(LONGER * self.every)
        elif scale < PLENTY:
            wanted = math.floor(SHORTER * self.every)
        else:
            return
        self.every = max(self.shortest, min(self.longest, wanted))
        # The phase is over. Its end must hold under the new length, too.
        self.place = self.every

    @property
    def settings(self) -> tuple[str, ...]:
        """Lines that must be the same on all ranks."""
        return (
            f"every={[self.shortest, self.longest]}",
            f"delay={self.delay}",
            f"fragments={self.fragments}",
        )

    def save(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in SCHEDULE}

    def require_fit(self, saved: Mapping[str, int | None]) -> None:
        """Raise ValueError if a schedule that has passed `require_schedule` does not fit."""
        count("schedule.every", saved["every"], self.shortest, self.longest)
        if saved["ends"] is not None:
            # Without a delay every exchange ends at once, and none can be under way.
            count("schedule.ends - began", saved["ends"] - (saved["began"] or 0), 1, self.delay)

    def load(self, saved: Mapping[str, int | None]) -> None:
        """Restore a schedule that has passed `require_fit`."""
        for name in SCHEDULE:
            setattr(self, name, saved[name])


def schedule_of(
    every: int | Sequence[int] | None, fragments: int, delay: int, policy: Threshold, shards: str
) -> Schedule:
    """Return the schedule of an `OuterSync`.

    Args:
        every, fragments, delay: those of `Schedule`. Without `every`, phases have the usual length,
            and follow a budget where they can.
        shards: the places of the shards that FSDP has made of the model; empty if it is whole.

    Raises:
        TypeError, ValueError: what `Schedule` raises. ValueError also if phases are to follow a
            budget and cannot.
    """
    has_budget = isinstance(policy, Budget)
    if every is None:
        every = (USUAL, LONGEST_USUAL) if has_budget and not shards else USUAL
    schedule = Schedule(every, fragments, delay)
    if schedule.shortest == schedule.longest:
        return schedule
    bounds = f"every={(schedule.shortest, schedule.longest)}"
    if not has_budget:
        raise ValueError(
            f"{bounds} follows a Budget, and the threshold is {policy}; give one number"
        )
    if shards:
        raise ValueError(
            f"{bounds} follows a Budget, and the ranks that hold another shard have one of their "
            "own: the shards of a parameter would be exchanged at different steps; give one number"
        )
    return schedule


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
