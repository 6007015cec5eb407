"""The running account of one step on one rank."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from gradsieve.sieve import Moments
from gradsieve.telemetry import StepRecord

Stage = Literal["rotate", "select", "encode", "exchange", "decode", "wait"]

EXPOSED: tuple[Stage, ...] = ("rotate", "select", "encode", "wait")


class Tally:
    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.buckets = 0
        self.seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        self.elements = 0
        self.sent_elements = 0
        self.frame_bytes = 0
        self.second_frame_bytes = 0
        """Of sums; the communication thread's."""
        self.nonfinite = 0
        self.nonfinite_anywhere = False
        self.plain = False
        self.gives_residuals = False
        """An all-reduce of this step carries residuals."""
        self.thresholds: dict[str, float] = {}
        self.moments: dict[str, Moments] = {}

    @property
    def all_frame_bytes(self) -> int:
        return self.frame_bytes + self.second_frame_bytes

    @property
    def exposed_seconds(self) -> float:
        return sum(self.seconds[stage] for stage in EXPOSED)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def record(self, step: int, *, residual_norm: float, exchange: str, reason: str) -> StepRecord:
        return StepRecord(
            step=step,
            exchange=exchange,
            reason=reason,
            thresholds=dict(self.thresholds),
            densities={name: moments.density for name, moments in self.moments.items()},
            density=self.sent_elements / self.elements if self.elements else 0.0,
            frame_bytes=self.all_frame_bytes,
            bits_per_parameter=8 * self.all_frame_bytes / self.elements if self.elements else 0.0,
            rotate_seconds=self.seconds["rotate"],
            select_seconds=self.seconds["select"],
            encode_seconds=self.seconds["encode"],
            exchange_seconds=self.seconds["exchange"],
            decode_seconds=self.seconds["decode"],
            exposed_seconds=None if self.plain else self.exposed_seconds,
            residual_norm=residual_norm,
            plain=self.plain,
            nonfinite=self.nonfinite,
        )
