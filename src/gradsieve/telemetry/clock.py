"""The clock of a running step on one rank, and what is counted beside it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from gradsieve.runtime.threads import helper_seconds, usable_cores
from gradsieve.sieve import Moments

Stage = Literal["add", "rotate", "select", "encode", "exchange", "decode"]
"""A stage of a bucket's way, in the communication thread."""


class StepClock:
    """Times and counts of one step.

    Args:
        computing_threads: number of threads that a backward pass keeps busy on this machine.
    """

    def __init__(self, computing_threads: int = 1) -> None:
        self._computing_threads = computing_threads
        self.start = time.perf_counter()
        self.buckets = 0
        """Buckets whose frames have traveled."""
        self.seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        self.processor_seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        """Without the time that the thread stood still, for the network or for other threads."""
        self.meet_seconds = 0.0
        """The part of the exchange in which ranks tell the sizes of their frames, and wait for the
        last one."""
        self.stolen_seconds = 0.0
        """Processor time that the communication thread took from the backward pass."""
        self.wait_seconds = 0.0
        """Time that the training thread waited for the communication thread."""
        self.overhead = 0.0
        """Seconds of encoding and decoding that do not shrink with the bytes."""
        self.elements = 0
        self.sent_elements = 0
        self.frame_bytes = 0
        """Bytes of this rank's frames, those of sums among them."""
        self.nonfinite = 0
        self.nonfinite_names: list[str] = []
        """Parameters whose gradient on this rank is not finite."""
        self.carries_nonfinite = False
        """A frame of this rank holds what is not finite of another rank of its node."""
        self.nonfinite_anywhere = False
        self.plain = False
        """Nothing was pruned."""
        self.thresholds: dict[str, float] = {}
        self.moments: dict[str, Moments] = {}

    @property
    def exposed_seconds(self) -> float:
        """What the exchange adds to the step."""
        return self.wait_seconds + self.stolen_seconds

    def timed(self, stage: Stage) -> "StageTimer":
        """A context whose seconds are added to a stage."""
        return StageTimer(self, stage)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the training thread waits for the communication thread."""
        if not self.wait_seconds:
            share = stolen_share(self._computing_threads, usable_cores())
            self.stolen_seconds = share * sum(self.processor_seconds.values())
        start = time.perf_counter()
        try:
            yield
        finally:
            self.wait_seconds += time.perf_counter() - start


class StageTimer:
    """Adds its seconds to a stage. No generator: it is entered several times a parameter."""

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
    """Processor time of this thread and of those that share its work."""
    return time.thread_time() + helper_seconds()


def stolen_share(computing_threads: int, cores: int) -> float:
    """The share of the communication thread's processor time that the backward pass lacks.

    It is 0 where a core is free beside the threads that compute.
    """
    return 0.0 if computing_threads < cores else 1.0 / cores
