"""Rows of a plan: what each way would take, and how near that comes to what was measured."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradsieve.exchange.cost import LinkCost
from gradsieve.lab.link import UNSHAPED, parse_link
from gradsieve.lab.methods.dense import Ddp, Fp16
from gradsieve.lab.methods.sieve import Sieve
from gradsieve.lab.methods.table import read_method
from gradsieve.lab.plan.bare_step import BareStep
from gradsieve.lab.plan.machine import Machine, Measured
from gradsieve.lab.plan.predict import predict_dense, predict_frames
from gradsieve.pieces import Way

ON_THE_WIRE = 0.957
"""Of a link's rate: the rest are headers of Ethernet, IP and TCP."""
ALIKE = 1.03
"""Ways within this factor are called alike. Predictions are off by more, but mostly all alike: what
is computed beside the exchange."""
MOSTLY_DENSE, MOSTLY_FRAMES = 16.0, 6.0
"""Bits an element: what a run sends more than, or less than, that has chosen one way."""
DESCRIBED = re.compile(r"([\d.]+) ([GMk]?)bit/s each way \(tbf\)(?:, ([\d.]+) ms round trip)?")
Seconds = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    workload: str
    link: str
    ranks: int
    bits: float
    """Of frames, an element."""
    limit_seconds: float
    """A step with no exchange at all."""
    seconds: Seconds
    """A step, by exchange."""
    quickest: tuple[str, ...]
    """The quickest way, and those that are as quick as the prediction can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    workload: str
    link: str
    ranks: int
    method: str
    measured_seconds: float
    predicted_seconds: float

    @property
    def error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1


def link_cost(rate: float, round_trip: float, machine: Machine) -> LinkCost:
    """Of a link with a rate in bits a second and a round trip in seconds.

    A collective of Gloo asks before it sends: it takes a round trip.
    """
    return LinkCost(round_trip + machine.collective / 2, ON_THE_WIRE * rate / 8)


def plan_row(
    workload: str, bare: BareStep, machine: Machine, link: str, ranks: int, bits: float
) -> PlanRow:
    """Raises ValueError where `link` is not written as for `open_link`."""
    rate, round_trip = (math.inf, 0.0) if link == UNSHAPED else parse_link(link)
    cost = link_cost(rate, round_trip, machine)
    ways: tuple[Way, ...] = ("gather", "two-shot")
    seconds = {
        "dense": predict_dense(bare, machine, cost, ranks),
        "dense-fp16": predict_dense(bare, machine, cost, ranks, half=True),
    } | {way: predict_frames(bare, machine, cost, ranks, way, bits) for way in ways}
    by_speed = sorted(seconds, key=lambda way: seconds[way])
    return PlanRow(
        workload=workload,
        link=link,
        ranks=ranks,
        bits=bits,
        limit_seconds=bare.step,
        seconds=seconds,
        quickest=tuple(way for way in by_speed if seconds[way] <= ALIKE * seconds[by_speed[0]]),
    )


def comparisons(rows: Iterable[dict[str, object]], measured: Measured) -> Iterator[Comparison]:
    """Rows of `gradsieve bench step` beside what is predicted for them, where the model knows how.

    Each with the lock-step time of its own run: machines drift.
    """
    for row in rows:
        bare = measured.bare_steps[str(row["workload"])]
        predicted = predicted_seconds(row, bare, measured.machine)
        if predicted is not None:
            yield Comparison(
                workload=str(row["workload"]),
                link=str(row["link"]),
                ranks=int(str(row["ranks"])),
                method=str(row["method"]),
                measured_seconds=float(str(row["step_seconds"])),
                predicted_seconds=predicted,
            )


def predicted_seconds(row: dict[str, object], bare: BareStep, machine: Machine) -> float | None:
    drift = float(str(row["limit_seconds"])) / bare.step
    bare = BareStep(
        step=drift * bare.step,
        backward=drift * bare.backward,
        wrapper=drift * bare.wrapper,
        buckets=bare.buckets,
    )
    cost, ranks = described_link(str(row["link"]), machine), int(str(row["ranks"]))
    method = read_method(str(row["method"]))
    bits = float(str(row["bits_per_parameter"]))
    if isinstance(method, Ddp | Fp16) or (isinstance(method, Sieve) and bits > MOSTLY_DENSE):
        return predict_dense(bare, machine, cost, ranks, half=isinstance(method, Fp16))
    way = method.settings.get("exchange", "gather") if isinstance(method, Sieve) else None
    if way == "auto":
        way = "gather"
    # Between, a run has taken several ways.
    if way not in ("gather", "two-shot") or bits > MOSTLY_FRAMES:
        return None
    if way == "two-shot":
        # Counted with the frames of sums.
        bits /= 1 + 1 / ranks
    return predict_frames(bare, machine, cost, ranks, way, bits)


def described_link(words: str, machine: Machine) -> LinkCost:
    """Of the words that a link describes itself with."""
    found = DESCRIBED.search(words)
    if found is None:
        return link_cost(math.inf, 0.0, machine)
    unit = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}[found[2]]
    return link_cost(float(found[1]) * unit, float(found[3] or 0) / 1000, machine)


def read_rows(paths: Sequence[Path]) -> list[dict[str, object]]:
    return [row for path in paths for row in json.loads(path.read_text())]
