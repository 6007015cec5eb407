"""Budget: thresholds scaled until a step sends, or takes, what it may."""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal

from gradsieve.control.thresholds import Measured, Threshold, require
from gradsieve.runtime.units import parse_rate
from gradsieve.sieve import Moments
from gradsieve.telemetry.report import StepReport

WANTED_SHARE = 0.05
"""Of the computation: what the exchange may add to it."""
LEAST_SHARE = 0.03
"""Of the computation: what bytes may add to it, even where the exchange takes more than its share
however little is sent."""
IDLE_SHARE = 0.1
"""Of the window: a communication thread with less to spare has work in hand all the time."""
APPROACH = 0.4
"""Of the way to the scale that is expected to fit, in a step."""
LARGEST_FACTOR = 2.0
"""Of the scale, from a step to the next."""
LEAST_FACTOR, LEAST_FACTOR_BELOW_ONE = 0.88, 0.7
"""A threshold of several deviations that falls quickly lets a burst pass of what was kept just
below it."""
SMALLEST_SCALE = 1e-4
LARGEST_SCALE = 8.0
"""Where time is what counts: beyond, hardly anything is learned."""
ALIKE = 3
"""Steps of which the quickest transfer a byte is taken: another process may hold one up."""
BURST = 4
"""Steps of which bytes are averaged: what the residual holds back in one passes in the next."""
REMEMBERED = 20
"""Steps of which the usual one, and the quickest meeting, are taken."""
OUTLIER = 4.0
"""Times the usual step: a rank was late, unless it happens twice."""


@dataclass(frozen=True)
class Budget:
    """Thresholds as `Sigma(k, of="balanced")`, with one k for all ranks that follows the link.

    Args:
        limit: "auto": as many bytes as the backward pass hides, and as cost 5 % of the computation
            beyond that.
        bytes_per_step: instead: of frames, a rank and step.
        bits_per_second: instead: of frames, a rank; on average over steps, whatever they take. A
            number, or text as "20mbit" or "1gbit".
        seconds_per_step: instead: that the exchange may add to a step.

    Raises:
        TypeError: one that must be a number is none.
        ValueError: not exactly one of them, or it is not positive and finite, or no rate.
    """

    limit: Literal["auto"] | None = None
    bytes_per_step: float | None = None
    bits_per_second: float | str | None = None
    seconds_per_step: float | None = None
    measured: ClassVar[Measured] = "balanced"

    def __post_init__(self) -> None:
        if isinstance(rate := self.bits_per_second, str):
            # Ranks that write it otherwise mean the same.
            object.__setattr__(self, "bits_per_second", float(parse_rate(rate)))
        numbers = {
            "bytes_per_step": self.bytes_per_step,
            "bits_per_second": self.bits_per_second,
            "seconds_per_step": self.seconds_per_step,
        }
        if any(isinstance(value, bool) for value in numbers.values()):
            raise ValueError(f"a budget is a number, not True or False, got {self}")
        given = (self.limit, *numbers.values())
        if sum(value is not None for value in given) != 1 or self.limit not in (None, "auto"):
            raise ValueError(
                'write one of Budget("auto"), Budget(bytes_per_step=...), '
                "Budget(bits_per_second=...) and Budget(seconds_per_step=...), got "
                f"{self}"
            )
        for name, value in numbers.items():
            if value is None:
                continue
            if not isinstance(value, Real):
                raise TypeError(f"Budget: {name} must be a number, got {value!r}")
            require(0 < value < math.inf, "Budget", name, "positive and finite", value)

    def next(self, moments: Moments, threshold: float | None) -> float:
        return moments.std


def limits_bytes(policy: Threshold) -> bool:
    """Whether steps in which everything travels would break it."""
    return isinstance(policy, Budget) and bool(policy.bytes_per_step or policy.bits_per_second)


class BudgetSteering:
    """Follows a budget by the reports of all ranks; on the same reports it takes the same way."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.scale = 1.0
        """What the thresholds are multiplied by."""
        self.steps: deque[float] = deque(maxlen=REMEMBERED)
        self.meets: deque[float] = deque(maxlen=REMEMBERED)
        self.computations: deque[float] = deque(maxlen=REMEMBERED)
        self.per_byte: deque[float] = deque(maxlen=ALIKE)
        self.affordable: deque[float] = deque(maxlen=ALIKE)
        """Bytes a step."""
        self.unscaled: deque[float] = deque(maxlen=BURST)
        """Bytes a step, as they would be without a scale: they fall with about its first power,
        once the residual has answered."""
        self.is_belated = False
        """The next report is of a step with another topology."""

    def forget_topology(self) -> None:
        """The topology is another from the next step on, with other bytes and other meetings."""
        for kept in (self.meets, self.per_byte, self.affordable, self.unscaled):
            kept.clear()
        self.is_belated = True

    def follow(self, report: StepReport, buckets: int) -> None:
        """Set the scale for the next step by the slowest rank's report of one not long ago."""
        if self.is_belated:
            self.is_belated = False
            return
        usual = statistics.median(self.steps) if self.steps else report.step
        was_late = bool(self.steps) and self.steps[-1] > OUTLIER * usual
        self.steps.append(report.step)
        self.meets.append(report.meet)
        self.computations.append(report.computation)
        on_the_line = max(1e-6, report.transfer - min(self.meets))
        self.per_byte.append(on_the_line / max(1.0, report.frame_bytes))
        if report.step > OUTLIER * usual and not was_late:
            return
        wanted = self.wanted_share(report, buckets)
        self.affordable.append(max(wanted, 1e-6) * report.frame_bytes)
        self.unscaled.append(report.scale * report.frame_bytes)
        fitting = statistics.fmean(self.unscaled) / statistics.median(self.affordable)
        least = LEAST_FACTOR if self.scale > 1 else LEAST_FACTOR_BELOW_ONE
        factor = max(least, min(LARGEST_FACTOR, (fitting / self.scale) ** APPROACH))
        self.scale = max(SMALLEST_SCALE, min(self.largest_scale, self.scale * factor))

    @property
    def largest_scale(self) -> float:
        return 1 / SMALLEST_SCALE if limits_bytes(self.budget) else LARGEST_SCALE

    def wanted_share(self, report: StepReport, buckets: int) -> float:
        """Bytes wanted over bytes sent.

        The quickest meetings are nothing but latency, of which frames have as much on their way.
        As long as the communication thread is idle in between, what is waited for is the last
        bucket; else it is whatever the gradients' computation does not hide.
        """
        if self.budget.bytes_per_step is not None:
            return self.budget.bytes_per_step / report.frame_bytes
        if self.budget.bits_per_second is not None:
            seconds = statistics.fmean(self.steps)
            return float(self.budget.bits_per_second) * seconds / (8 * report.frame_bytes)
        # Between two steps there may have been an evaluation.
        computation = statistics.median(self.computations)
        latency = min(self.meets)
        fixed_processor = report.select + report.overhead
        fixed = fixed_processor + report.add + report.meet + latency
        code = max(0.0, report.code - report.overhead)
        proportional = min(self.per_byte) * report.frame_bytes + code
        processor = report.select + report.code
        stolen_share = min(1.0, report.stolen / processor) if processor else 0.0
        stolen_code = stolen_share * code
        allowed = self.budget.seconds_per_step or WANTED_SHARE * computation
        allowed -= stolen_share * fixed_processor
        least = LEAST_SHARE * computation
        share = (max(allowed, least) + report.window - fixed) / (proportional + stolen_code)
        idle = report.window - (fixed + proportional - report.wait)
        if idle > IDLE_SHARE * report.window:
            last = max(1e-6, report.wait - fixed / buckets) + stolen_code
            share = min(share, max(allowed - fixed / buckets, least) / last)
        return max(share, least / proportional)
