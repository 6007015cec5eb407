"""The clock of a running step, with the counts from which its record and report are made."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from gradsieve.runtime.threads import helper_seconds, usable_cores
from gradsieve.sieve import Moments

Stage = Literal["add", "rotate", "select", "encode", "exchange", "decode"]
"""A stage of the exchange of a bucket, in the communication thread."""


class StepClock:
    """The times and counts of one step on one rank.

    Args:
        computing_threads: the number of threads that a backward pass keeps busy on this machine.
    """

    def __init__(self, computing_threads: int = 1) -> None:
        self._computing_threads = computing_threads
        self.start = time.perf_counter()
        self.buckets = 0
        """Number of buckets that were exchanged in frames."""
        self.seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        """Seconds of each stage."""
        self.processor_seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        """Seconds of processor time of each stage, without waits for the network or for other
        threads."""
        self.meet_seconds = 0.0
        """Seconds of the exchange in which ranks tell the sizes of their frames and wait for the
        last rank."""
        self.stolen_seconds = 0.0
        """Seconds of processor time that the communication thread took from the backward pass."""
        self.wait_seconds = 0.0
        """Seconds that the training thread waited for the communication thread."""
        self.overhead = 0.0
        """Seconds of encoding and decoding that are needed however little is sent."""
        self.elements = 0
        """Number of elements that were selected from or sent whole."""
        self.sent_elements = 0
        """Number of elements that were sent."""
        self.frame_bytes = 0
        """Bytes of the frames of this rank, including those of sums."""
        self.nonfinite = 0
        """Number of elements of this rank's gradients that are not finite."""
        self.nonfinite_names: list[str] = []
        """Names of the parameters whose gradient on this rank is not finite."""
        self.carries_nonfinite = False
        """Whether a frame of this rank carries a non-finite mean of its node."""
        self.nonfinite_anywhere = False
        """Whether a gradient of any rank, or an average, is not finite."""
        self.plain = False
        """Whether nothing was pruned."""
        self.thresholds: dict[str, float] = {}
        """The threshold of each pruned parameter, by name."""
        self.moments: dict[str, Moments] = {}
        """The moments of each pruned parameter, by name."""

    @property
    def exposed_seconds(self) -> float:
        """Seconds that the exchange adds to the step."""
        return self.wait_seconds + self.stolen_seconds

    def timed(self, stage: Stage) -> "StageTimer":
        """Return a context whose seconds are added to a stage."""
        return StageTimer(self, stage)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Return a context in which the training thread waits for the communication thread."""
        if not self.wait_seconds:
            share = stolen_share(self._computing_threads, usable_cores())
            self.stolen_seconds = share * sum(self.processor_seconds.values())
        start = time.perf_counter()
        try:
            yield
        finally:
            self.wait_seconds += time.perf_counter() - start


class StageTimer:
    """Adds its seconds to a stage.

    It is a class because a generator would be slow: it is entered several times per parameter.
    """

    __slots__ = ("_clock", "_processor_start", "_stage", "_start")

    def __init__(self, clock: StepClock, stage: Stage) -> None:
        self._clock, self._stage = clock, stage

    def __enter__(self) -> None:
        self._start, self._processor_start = time.perf_counter(), processor_seconds()

    def __exit__(self, *error: object) -> None:
        clock, stage = self._clock, self._stage
        clock.processor_seconds[stage] += processor_seconds() - self._processor_start
        clock.seconds[stage] += time.perf_counter() - self._start


def processor_seconds() -> float:
    """Return the processor seconds of this thread and of those that share its work."""
    return time.thread_time() + helper_seconds()


def stolen_share(computing_threads: int, cores: int) -> float:
    """Return the share of the communication thread's processor time that the backward pass lacks.

    It is 0 if a core is free beside the computing threads.
    """
    return 0.0 if computing_threads < cores else 1.0 / cores
