"""The report of a step that each rank sends to the others, by which all steer alike."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step took on one rank. All times are in seconds."""

    scale: float
    """Factor of all thresholds."""
    frame_bytes: float
    """Bytes of the frames of the rank."""
    step: float
    """Seconds from the end of the step before to the end of this one."""
    window: float
    """Seconds from the first bucket to the last, while gradients are still computed."""
    select: float
    """Processor seconds of rotating and selecting, which do not shrink with the bytes."""
    code: float
    """Processor seconds of encoding and decoding."""
    overhead: float
    """The part of `code` that is needed however little is sent."""
    add: float
    """Seconds of averaging over the ranks of a node, including the wait for the last of them."""
    meet: float
    """Seconds until all ranks have told the sizes of their frames."""
    transfer: float
    """Seconds in which frames travel."""
    wait: float
    """Seconds that the training thread waited after the last bucket."""
    stolen: float
    """Processor seconds that the communication thread took from the backward pass."""
    dense_step: float = 0.0
    """Median seconds of the last dense steps; 0 if there were none."""

    @property
    def computation(self) -> float:
        """Seconds of the step without what the exchange adds to it."""
        return max(1e-6, self.step - self.exposed)

    @property
    def exposed(self) -> float:
        """Seconds that the exchange adds to the step."""
        return self.wait + self.stolen


FIELDS = tuple(field.name for field in fields(StepReport))
NO_REPORT = [0.0] * len(FIELDS)
"""The numbers that a rank sends without a report."""
numbers_of = attrgetter(*FIELDS)
"""Returns the fields of a report, in order. `astuple` would be slower, since it copies them."""


def report_of(numbers: Sequence[float]) -> StepReport:
    """Return the report whose fields `numbers_of` has returned."""
    return StepReport(**dict(zip(FIELDS, numbers, strict=True)))


def slowest(ranks: Sequence[StepReport]) -> StepReport:
    """Return the report of a rank that all others would wait for.

    Such a rank waits least, so its times of waiting are the smallest of all ranks. Its other
    numbers are the largest of all ranks.
    """
    least = {name: min(getattr(rank, name) for rank in ranks) for name in ("add", "meet", "wait")}
    largest = report_of([max(numbers) for numbers in zip(*map(numbers_of, ranks), strict=True)])
    return replace(largest, **least)


def slowest_of(notes: Sequence[Sequence[float]]) -> list[float]:
    """Return the slowest rank's report as numbers; `NO_REPORT` if a rank has sent none yet."""
    told = [report_of(note) for note in notes]
    return list(numbers_of(slowest(told))) if all(rank.step for rank in told) else NO_REPORT
