"""What a step took on each rank, told to all ranks with the next step's frames."""

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

from gradsieve.exchange import Notes
from gradsieve.telemetry.clock import Tally

DENSE_STEPS = 5
"""That the median of dense steps is taken of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One rank's account of one step; times in seconds."""

    scale: float
    """What the thresholds were multiplied by."""
    frame_bytes: float
    step: float
    """From the end of the step before to the end of this one."""
    window: float
    """From the first bucket to the last, in which gradients are computed."""
    select: float
    """The communication thread's work that does not shrink with the bytes."""
    code: float
    """The communication thread's work: encoding and decoding."""
    overhead: float
    """Of that: what it takes however little is sent."""
    add: float
    """The communication thread's: the sum of a node's ranks, which wait there for the last one."""
    meet: float
    """The communication thread's: until all ranks have told their frames' sizes."""
    transfer: float
    """The communication thread's: frames under way."""
    wait: float
    """For the communication thread, after the last bucket."""
    stolen: float
    """What the backward pass lacked of the processor for the communication thread's sake."""
    dense_step: float = 0.0
    """The median of the last steps without frames; 0 where there were none."""

    @property
    def computation(self) -> float:
        return max(1e-6, self.step - self.exposed)

    @property
    def exposed(self) -> float:
        return self.wait + self.stolen


def slowest(ranks: Sequence[Account]) -> Account:
    """Of the rank that all others wait for, which itself waits least; else the largest numbers."""
    least = {name: min(getattr(rank, name) for rank in ranks) for name in ("add", "meet", "wait")}
    largest = account_of([max(numbers) for numbers in zip(*map(numbers_of, ranks), strict=True)])
    return replace(largest, **least)


def account_of(numbers: Sequence[float]) -> Account:
    """In the order of the fields."""
    return Account(**dict(zip(FIELDS, numbers, strict=True)))


FIELDS = tuple(field.name for field in fields(Account))
NO_ACCOUNT = [0.0] * len(FIELDS)
numbers_of = attrgetter(*FIELDS)
"""`astuple` copies every number."""


class Accounts:
    """Keeps this rank's account, and hears the others'."""

    def __init__(self) -> None:
        self.notes = Notes(NO_ACCOUNT)
        self._ended = -math.inf
        self._dense: deque[float] = deque(maxlen=DENSE_STEPS)

    def begin_step(self) -> None:
        self.notes.seconds = 0.0

    def end_dense_step(self) -> None:
        self._dense.append(self._step())
        # What was told before is heard.
        self.notes.mine = NO_ACCOUNT

    def skip_step(self) -> None:
        """Frames that hold NaN or infinity are no measure of others."""
        self._step()
        self.notes.mine = NO_ACCOUNT

    def end_sieve_step(self, tally: Tally, *, window: float, scale: float) -> Account | None:
        """Returns the slowest rank's account of the sieve's step before; None if there is none."""
        told = slowest_of(self.notes.heard)
        step, meet, processor = self._step(), self.notes.seconds, tally.processor_seconds
        account = Account(
            scale=scale,
            frame_bytes=tally.all_frame_bytes,
            step=step,
            window=window,
            select=processor["rotate"] + processor["select"],
            code=processor["encode"] + processor["decode"],
            overhead=tally.overhead,
            add=tally.seconds["add"],
            meet=meet,
            transfer=tally.seconds["exchange"] - meet,
            wait=tally.wait_seconds,
            stolen=tally.stolen_seconds,
            dense_step=self._dense_step,
        )
        if step < math.inf:
            # Of the first step it is not known how long it took.
            self.notes.mine = list(numbers_of(account))
        return account_of(told) if any(told) else None

    @property
    def _dense_step(self) -> float:
        return statistics.median(self._dense) if self._dense else 0.0

    def _step(self) -> float:
        before, self._ended = self._ended, time.perf_counter()
        return self._ended - before


def slowest_of(notes: Sequence[Sequence[float]]) -> list[float]:
    """The slowest rank's account, in numbers; zeros where a rank has not told one yet."""
    told = [account_of(note) for note in notes]
    return list(numbers_of(slowest(told))) if all(rank.step for rank in told) else NO_ACCOUNT
