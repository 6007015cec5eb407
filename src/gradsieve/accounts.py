"""What a step took on each rank, told to all ranks with the next step's frames."""

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

from gradsieve.exchange import FrameExchange
from gradsieve.tally import Tally

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
    transfer: float
    """The communication thread's: frames under way, and decoding."""
    meet: float
    """The communication thread's before that: until all ranks have told their frames' sizes."""
    wait: float
    """For the communication thread, after the last bucket."""
    encode: float
    select: float
    """With rotating; it does not shrink with the bytes."""
    dense_step: float = 0.0
    """The median of the last steps without frames; 0 where there were none."""

    @property
    def computation(self) -> float:
        return max(1e-6, self.step - self.wait - self.encode - self.select)


def slowest(ranks: Sequence[Account]) -> Account:
    """Of the rank that all others wait for, which itself waits least; else the largest numbers."""
    least = {name: min(getattr(rank, name) for rank in ranks) for name in ("meet", "wait")}
    largest = account_of([max(numbers) for numbers in zip(*map(astuple, ranks), strict=True)])
    return replace(largest, **least)


def account_of(numbers: Sequence[float]) -> Account:
    """In the order of the fields."""
    return Account(**dict(zip(Account.__dataclass_fields__, numbers, strict=True)))


NO_ACCOUNT = [0.0] * len(fields(Account))


class Accounts:
    """Keeps this rank's account, and hears the others'."""

    def __init__(self) -> None:
        self._ended = -math.inf
        self._dense: deque[float] = deque(maxlen=DENSE_STEPS)

    def end_dense_step(self, transport: FrameExchange) -> None:
        self._dense.append(self._step())
        account = replace(account_of(transport.note), dense_step=self._dense_step)
        transport.note = list(astuple(account))

    def end_sieve_step(
        self, tally: Tally, transport: FrameExchange, *, window: float, scale: float
    ) -> Account | None:
        """Returns the slowest rank's account of the sieve's step before; None if there is none."""
        told = [account_of(note) for note in transport.notes]
        step, seconds, meet = self._step(), tally.seconds, transport.meet_seconds
        account = Account(
            scale=scale,
            frame_bytes=tally.all_frame_bytes,
            step=step,
            window=window,
            transfer=seconds["exchange"] + seconds["decode"] - meet,
            meet=meet,
            wait=seconds["wait"],
            encode=seconds["encode"],
            select=seconds["select"] + seconds["rotate"],
            dense_step=self._dense_step,
        )
        # Of the first step it is not known how long it took.
        transport.note = list(astuple(account)) if step < math.inf else transport.note
        return slowest(told) if all(rank.frame_bytes for rank in told) else None

    @property
    def _dense_step(self) -> float:
        return statistics.median(self._dense) if self._dense else 0.0

    def _step(self) -> float:
        before, self._ended = self._ended, time.perf_counter()
        return self._ended - before
