"""The running account of one step on one rank."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from gradsieve.exchange.nodes import stated_node_size
from gradsieve.runtime.threads import helper_seconds, usable_cores
from gradsieve.sieve import Moments
from gradsieve.telemetry import StepRecord

Stage = Literal["add", "rotate", "select", "encode", "exchange", "decode"]
"""Of the communication thread."""


class Tally:
    """
    Args:
        computing_threads: that a backward pass keeps busy on this machine's cores.
    """

    def __init__(self, computing_threads: int = 1) -> None:
        self._computing_threads = computing_threads
        self.start = time.perf_counter()
        self.buckets = 0
        self.seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        self.processor_seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        """Without what the thread stood still, for the network or for other threads."""
        self.stolen_seconds = 0.0
        self.wait_seconds = 0.0
        self.overhead = 0.0
        """Seconds of encoding and decoding that do not shrink with the bytes."""
        self.elements = 0
        self.sent_elements = 0
        self.frame_bytes = 0
        self.second_frame_bytes = 0
        """Of sums."""
        self.nonfinite = 0
        self.nonfinite_names: list[str] = []
        """Parameters whose gradient on this rank is not finite."""
        self.carries_nonfinite = False
        """A frame of this rank holds what is not finite of another rank of its node."""
        self.nonfinite_anywhere = False
        self.plain = False
        self.thresholds: dict[str, float] = {}
        self.moments: dict[str, Moments] = {}

    @property
    def all_frame_bytes(self) -> int:
        return self.frame_bytes + self.second_frame_bytes

    @property
    def exposed_seconds(self) -> float:
        return self.wait_seconds + self.stolen_seconds

    def timed(self, stage: Stage) -> "StageTimer":
        return StageTimer(self, stage)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In the training thread: it has nothing to do but wait for the communication thread."""
        if not self.wait_seconds:
            share = stolen_share(self._computing_threads, usable_cores())
            self.stolen_seconds = share * sum(self.processor_seconds.values())
        start = time.perf_counter()
        try:
            yield
        finally:
            self.wait_seconds += time.perf_counter() - start

    def record(
        self,
        step: int,
        *,
        residual_norm: float,
        exchange: str,
        reason: str,
        loss_scale: float,
        nonfinite_parameters: dict[int, list[str]],
    ) -> StepRecord:
        return StepRecord(
            step=step,
            exchange=exchange,
            reason=reason,
            thresholds=dict(self.thresholds),
            densities={name: moments.density for name, moments in self.moments.items()},
            density=self.sent_elements / self.elements if self.elements else 0.0,
            frame_bytes=self.all_frame_bytes,
            bits_per_parameter=8 * self.all_frame_bytes / self.elements if self.elements else 0.0,
            add_seconds=self.seconds["add"],
            rotate_seconds=self.seconds["rotate"],
            select_seconds=self.seconds["select"],
            encode_seconds=self.seconds["encode"],
            exchange_seconds=self.seconds["exchange"],
            decode_seconds=self.seconds["decode"],
            exposed_seconds=None if self.plain else self.exposed_seconds,
            residual_norm=residual_norm,
            plain=self.plain,
            nonfinite=self.nonfinite,
            nonfinite_parameters=nonfinite_parameters,
            loss_scale=loss_scale,
        )


class StageTimer:
    """Adds its seconds to a stage. No generator: it is entered several times a parameter."""

    __slots__ = ("_processor_start", "_stage", "_start", "_tally")

    def __init__(self, tally: Tally, stage: Stage) -> None:
        self._tally, self._stage = tally, stage

    def __enter__(self) -> None:
        self._start, self._processor_start = time.perf_counter(), processor_seconds()

    def __exit__(self, *error: object) -> None:
        tally, stage = self._tally, self._stage
        tally.processor_seconds[stage] += processor_seconds() - self._processor_start
        tally.seconds[stage] += time.perf_counter() - self._start


def processor_seconds() -> float:
    """Of this thread and of those that share its work."""
    return time.thread_time() + helper_seconds()


def stolen_share(computing_threads: int, cores: int) -> float:
    """Of the communication thread's processor time: what the computation lacks meanwhile.

    Nothing where a core is free beside the threads that compute.
    """
    return 0.0 if computing_threads < cores else 1.0 / cores


def computing_threads(device: torch.device) -> int:
    """Of a backward pass, on the cores that this process may use; of all ranks that share them."""
    if device.type != "cpu":
        return 1
    shared = usable_cores() == os.cpu_count()
    return torch.get_num_threads() * (stated_node_size(None) if shared else 1)
