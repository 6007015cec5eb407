"""Rows of a plan: the predicted time of each exchange, and how near it is to a measured one."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradsieve.exchange.cost import LinkCost, Links
from gradsieve.lab.link import UNSHAPED, parse_link
from gradsieve.lab.methods.dense import Ddp, Fp16
from gradsieve.lab.methods.sieve import Sieve
from gradsieve.lab.methods.table import read_method
from gradsieve.lab.plan.bare_step import BareStep
from gradsieve.lab.plan.machine import Machine, Measured
from gradsieve.lab.plan.predict import predict
from gradsieve.topology import (
    DENSE,
    DENSE_HALF,
    DENSE_TOPOLOGIES,
    FRAMES,
    GATHER,
    TOPOLOGIES,
    AnyTopology,
    DenseTopology,
)

ON_THE_WIRE = 0.957
"""The share of a link's rate that is left beside headers of Ethernet, IP and TCP."""
ALIKE = 1.03
"""Exchanges within this factor count as alike. Predictions are off by more, but mostly by the same
for all, which is the computation beside the exchange."""
MOSTLY_DENSE, MOSTLY_FRAMES = 16.0, 6.0
"""Bits an element: a run that sent more than the first was dense, one below the second sent frames
alone."""
DESCRIBED = re.compile(r"([\d.]+) ([GMk]?)bit/s each way \(tbf\)(?:, ([\d.]+) ms round trip)?")
Seconds = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    workload: str
    link: str
    ranks: int
    bits: float
    """The size of frames, in bits an element."""
    limit_seconds: float
    """The seconds of a step without any exchange."""
    seconds: Seconds
    """The seconds of a step, by exchange."""
    quickest: tuple[str, ...]
    """The quickest exchange, and those that the prediction cannot tell from it."""


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
    """Return the cost of a link with a rate in bits a second and a round trip in seconds.

    A collective of Gloo asks before it sends, so that it takes a round trip.
    """
    return LinkCost(round_trip + machine.collective / 2, ON_THE_WIRE * rate / 8)


def plan_row(
    workload: str, bare: BareStep, machine: Machine, link: str, ranks: int, bits: float
) -> PlanRow:
    """Predict a row. Raises ValueError where `link` is not written as for `open_link`."""
    rate, round_trip = (math.inf, 0.0) if link == UNSHAPED else parse_link(link)
    cost = link_cost(rate, round_trip, machine)
    links = Links(ranks, cost)
    topologies: tuple[AnyTopology, ...] = (*DENSE_TOPOLOGIES, *FRAMES)
    seconds: Seconds = {
        topology.name: predict(topology, bare, machine, links, bits)
        for topology in topologies
        # Not those that need nodes.
        if topology.seconds(links, 1.0, 1.0) < math.inf
    }
    by_speed = sorted(seconds, key=lambda name: seconds[name])
    return PlanRow(
        workload=workload,
        link=link,
        ranks=ranks,
        bits=bits,
        limit_seconds=bare.step,
        seconds=seconds,
        quickest=tuple(name for name in by_speed if seconds[name] <= ALIKE * seconds[by_speed[0]]),
    )


def comparisons(rows: Iterable[dict[str, object]], measured: Measured) -> Iterator[Comparison]:
    """Yield the rows of `gradsieve bench step` that can be predicted, beside their predictions.

    A prediction starts from the lock-step time of its own run, because machines drift.
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
    if row.get("ranks_per_node", 1) != 1:
        # The machine was measured with one rank a node.
        return None
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
    links = Links(ranks, cost)
    if isinstance(method, Fp16):
        return predict(DENSE_HALF, bare, machine, links, bits)
    if isinstance(method, Ddp) or (isinstance(method, Sieve) and bits > MOSTLY_DENSE):
        return predict(DENSE, bare, machine, links, bits)
    # Between the two, a run has used several topologies.
    if not isinstance(method, Sieve) or bits > MOSTLY_FRAMES:
        return None
    topology = TOPOLOGIES.get(method.config.topology_name, GATHER)
    if isinstance(topology, DenseTopology) or topology.of_nodes:
        return None
    # The bits include the frames of sums.
    bits /= topology.work(links, 1, 1).made
    return predict(topology, bare, machine, links, bits)


def described_link(words: str, machine: Machine) -> LinkCost:
    """Return the cost of a link from the words that it describes itself with."""
    found = DESCRIBED.search(words)
    if found is None:
        return link_cost(math.inf, 0.0, machine)
    unit = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}[found[2]]
    return link_cost(float(found[1]) * unit, float(found[3] or 0) / 1000, machine)


def read_rows(paths: Sequence[Path]) -> list[dict[str, object]]:
    return [row for path in paths for row in json.loads(path.read_text())]
