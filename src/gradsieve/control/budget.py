"""Budget: one scale for all thresholds, steered until a step sends or takes what it may."""

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
"""Share of the computation time that the exchange may add to a step."""
LEAST_SHARE = 0.03
"""Share of the computation time that bytes may add to a step in any case, even where the exchange
takes more than `WANTED_SHARE` however little is sent."""
IDLE_SHARE = 0.1
"""Share of the window. A communication thread that is idle for less is taken as always busy."""
APPROACH = 0.4
"""Share of the way, on a logarithmic axis, that the scale moves in a step towards the one that is
expected to fit."""
LARGEST_FACTOR = 2.0
"""Largest factor by which the scale grows from one step to the next."""
LEAST_FACTOR, LEAST_FACTOR_BELOW_ONE = 0.88, 0.7
"""Smallest factor from one step to the next, for scales above 1 and up to 1. If a threshold of
several deviations falls faster, a burst passes of residuals that were just below it."""
SMALLEST_SCALE = 1e-4
LARGEST_SCALE = 8.0
"""Largest scale of a budget of time. Beyond it, hardly anything is learned."""
EARLY_SCALE, EARLY_FACTOR = 0.1, 4.0
"""Largest scale of the first step, where thresholds begin low, and what each further step adds to
it; but no scale is lower than the one that fits, divided by the factor. Bytes rise with about the
same factor at most, however slow the link is."""
ALIKE = 3
"""Number of steps whose fastest transfer per byte counts. Another process may delay one of them."""
BURST = 4
"""Number of steps over which bytes are averaged. What a residual holds back in one step passes in
one of the next."""
REMEMBERED = 20
"""Number of steps from which the usual step and the fastest meeting are taken."""
OUTLIER = 4.0
"""Multiple of the usual step time. A longer step means that a rank was late, unless it happens
twice in a row."""


@dataclass(frozen=True)
class Budget:
    """Thresholds like those of ``Sigma(k, of="balanced")``, where k follows the link.

    k is the same for all parameters and all ranks. It is steered until each rank sends, or each
    step takes, what the budget allows. Give exactly one argument.

    Args:
        limit: "auto" sends as many bytes as the backward pass hides, and as many more as add 5 %
            of the computation time to a step. The first steps send more.
        bytes_per_step: bytes of frames that each rank may send in a step.
        bits_per_second: bits per second that each rank may send, on average over steps, however
            long they take: a number, or a text such as "20mbit" or "1gbit".
        seconds_per_step: seconds that the exchange may add to a step.

    Raises:
        TypeError: a value that must be a number is none.
        ValueError: there is not exactly one argument, a number is not positive and finite, or a
            text is no rate.

    Example:

        >>> import gradsieve as gs
        >>> gs.Budget("auto")
        Budget(limit='auto', bytes_per_step=None, bits_per_second=None, seconds_per_step=None)
        >>> gs.Budget(bits_per_second="20mbit").bits_per_second
        20000000.0
    """

    limit: Literal["auto"] | None = None
    bytes_per_step: float | None = None
    bits_per_second: float | str | None = None
    seconds_per_step: float | None = None
    measured: ClassVar[Measured] = "balanced"

    def __post_init__(self) -> None:
        if isinstance(rate := self.bits_per_second, str):
            # Ranks compare their options as text: "20mbit" and 2e7 must be the same.
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
    """Return whether the policy limits bytes, which rules out dense steps."""
    return isinstance(policy, Budget) and bool(policy.bytes_per_step or policy.bits_per_second)


class BudgetSteering:
    """Steers the scale of the thresholds by the reports of all ranks.

    All ranks get the same reports and therefore the same scale.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.scale = 1.0
        """The factor of all thresholds that is expected to fit."""
        self.steps: deque[float] = deque(maxlen=REMEMBERED)
        self.meets: deque[float] = deque(maxlen=REMEMBERED)
        self.computations: deque[float] = deque(maxlen=REMEMBERED)
        self.per_byte: deque[float] = deque(maxlen=ALIKE)
        self.affordable: deque[float] = deque(maxlen=ALIKE)
        """Bytes that a step could afford."""
        self.unscaled: deque[float] = deque(maxlen=BURST)
        """Bytes that a step would have sent at scale 1. Bytes fall with about the first power of
        the scale, once the residual has adapted."""
        self.is_belated = False
        """Whether the next report is of a step with the topology before."""

    def early_scale(self, steps: int) -> float:
        """Return the factor of all thresholds in an early step, or `scale` if that is smaller.

        An element whose gradient keeps its usual size and its sign adds that size to its residual
        in every step. It is sent after a tenth of all steps so far at the latest, where that takes
        no more than `EARLY_FACTOR` times the bytes that fit.

        Args:
            steps: the number of steps from the first that may prune to this one, both included.
        """
        return min(self.scale, max(EARLY_SCALE * steps, self.scale / EARLY_FACTOR))

    def forget_topology(self) -> None:
        """Forget the bytes and meetings, because the next step has another topology."""
        for kept in (self.meets, self.per_byte, self.affordable, self.unscaled):
            kept.clear()
        self.is_belated = True

    def forget_ranks(self) -> None:
        """Keep the scale alone, because other ranks take part from now on."""
        self.forget_topology()
        for kept in (self.steps, self.computations):
            kept.clear()
        self.is_belated = False

    def follow(self, report: StepReport, buckets: int) -> None:
        """Set the scale of the next step by the slowest rank's report of a recent step.

        Args:
            buckets: the number of buckets in a step.
        """
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
        """Return the ratio of the bytes wanted to the bytes sent.

        The fastest meeting (in which ranks tell the sizes of their frames) is pure latency, and
        the frames themselves have the same latency. If the communication thread has idle time,
        training waits for the last bucket alone. If it has none, training waits for whatever the
        backward pass does not hide.
        """
        if self.budget.bytes_per_step is not None:
            return self.budget.bytes_per_step / report.frame_bytes
        if self.budget.bits_per_second is not None:
            seconds = statistics.fmean(self.steps)
            return float(self.budget.bits_per_second) * seconds / (8 * report.frame_bytes)
        # The median, because there may have been an evaluation between two steps.
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
