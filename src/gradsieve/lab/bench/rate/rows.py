"""Runs summed up: a row for each method at each learning rate."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gradsieve.lab.bench.rate.play import PlayedRun
from gradsieve.lab.workloads.workload import load_workload, task_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRow:
    """The runs of one method at one learning rate, over all seeds."""

    workload: str
    steps: int
    ranks: int
    method: str
    learning_rate: float
    seeds: int
    bits_per_parameter: float
    bits_at_entropy: float | None
    """Had positions taken their entropy; None where none travel."""
    quality: float
    lowest: float
    highest: float
    own_rate: bool
    """Whether the learning rate is the workload's own."""
    best: bool
    """Whether this is the method's best learning rate among those with the most seeds."""


def summarize(runs: Iterable[PlayedRun]) -> list[RateRow]:
    """Return a row for each workload, number of steps and of ranks, method and learning rate."""
    groups: dict[tuple[Any, ...], list[PlayedRun]] = defaultdict(list)
    for run in runs:
        key = run.workload, run.steps, run.ranks, run.method, run.learning_rate
        groups[key].append(run)
    means = {key: statistics.mean(run.quality for run in group) for key, group in groups.items()}
    rows = []
    for key, group in groups.items():
        of_method = {other: mean for other, mean in means.items() if other[:-1] == key[:-1]}
        most = max(len(groups[other]) for other in of_method)
        compared = [mean for other, mean in of_method.items() if len(groups[other]) == most]
        workload = load_workload(key[0])
        choose = max if workload.higher_is_better else min
        at_entropy = [run.bits_at_entropy for run in group if run.bits_at_entropy is not None]
        rows.append(
            RateRow(
                workload=key[0],
                steps=key[1],
                ranks=key[2],
                method=key[3],
                learning_rate=key[4],
                seeds=len(group),
                bits_per_parameter=statistics.mean(run.bits_per_parameter for run in group),
                bits_at_entropy=statistics.mean(at_entropy) if at_entropy else None,
                quality=means[key],
                lowest=min(run.quality for run in group),
                highest=max(run.quality for run in group),
                own_rate=key[4] == workload.learning_rate,
                best=len(group) == most and means[key] == choose(compared),
            )
        )
    return sorted(rows, key=lambda row: (row.workload, row.steps, -row.bits_per_parameter))


Comparison = tuple[str, int, int]
"""A workload or its task, a number of steps and one of ranks."""


def comparisons(rows: Iterable[RateRow]) -> dict[Comparison, list[RateRow]]:
    """Group the rows of a picture's panel: one task, whatever the optimizer, steps and ranks."""
    return grouped(rows, lambda row: task_of(row.workload))


def grouped(rows: Iterable[RateRow], name: Callable[[RateRow], str]) -> dict[Comparison, Any]:
    groups: dict[Comparison, list[RateRow]] = defaultdict(list)
    for row in rows:
        groups[name(row), row.steps, row.ranks].append(row)
    return groups
