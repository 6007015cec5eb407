"""What a rank tells the others about a step that it has ended."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step took on one rank; times in seconds."""

    scale: float
    """What the thresholds were multiplied by."""
    frame_bytes: float
    step: float
    """From the end of the step before to the end of this one."""
    window: float
    """From the first bucket to the last, in which gradients are computed."""
    select: float
    """Processor time of the communication thread that does not shrink with the bytes."""
    code: float
    """Processor time of the communication thread for encoding and decoding."""
    overhead: float
    """The part of `code` that is needed however little is sent."""
    add: float
    """The sum of a node's ranks, in which each waits for the last one."""
    meet: float
    """Until all ranks have told the sizes of their frames."""
    transfer: float
    """Frames on their way."""
    wait: float
    """Time that the training thread waited after the last bucket."""
    stolen: float
    """Processor time that the backward pass lacked."""
    dense_step: float = 0.0
    """The median of the last dense steps; 0 where there were none."""

    @property
    def computation(self) -> float:
        return max(1e-6, self.step - self.exposed)

    @property
    def exposed(self) -> float:
        return self.wait + self.stolen


FIELDS = tuple(field.name for field in fields(StepReport))
NO_REPORT = [0.0] * len(FIELDS)
"""What a rank tells that has nothing to report."""
numbers_of = attrgetter(*FIELDS)
"""The fields of a report, in order; `astuple` copies every number."""


def report_of(numbers: Sequence[float]) -> StepReport:
    """The way back of `numbers_of`."""
    return StepReport(**dict(zip(FIELDS, numbers, strict=True)))


def slowest(ranks: Sequence[StepReport]) -> StepReport:
    """The report of the rank that all others wait for.

    That rank waits least, so times of waiting are the smallest of all ranks; the other numbers are
    the largest.
    """
    least = {name: min(getattr(rank, name) for rank in ranks) for name in ("add", "meet", "wait")}
    largest = report_of([max(numbers) for numbers in zip(*map(numbers_of, ranks), strict=True)])
    return replace(largest, **least)


def slowest_of(notes: Sequence[Sequence[float]]) -> list[float]:
    """The slowest rank's report in numbers; zeros where a rank has not told one yet."""
    told = [report_of(note) for note in notes]
    return list(numbers_of(slowest(told))) if all(rank.step for rank in told) else NO_REPORT
