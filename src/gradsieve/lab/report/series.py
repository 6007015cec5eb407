"""Rows of numbers that charts are drawn from, few enough for a page."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import accumulate, groupby
from typing import Any

from gradsieve.lab.report.source import Run
from gradsieve.recording.files import Line
from gradsieve.telemetry.record import StepRecord

Row = dict[str, Any]

OWN_FIELDS = frozenset({*(field.name for field in fields(StepRecord)), "seconds", "sent_bytes"})
"""The fields of a record that are no metrics of the user."""
POINTS = 10_000
"""The most points of all runs together, and of all their layers."""
SMOOTHING_SHARE = 0.02
"""A metric is averaged over this share of a run's steps, since batches differ."""


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs by title, in the order in which they were found."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.title, []).append(run)
    return groups


def metrics_of(runs: Iterable[Run]) -> list[str]:
    """Return the names of the numbers that a training loop has logged itself."""
    names: dict[str, None] = {}
    for run in runs:
        for line in run.steps:
            for key, value in line.items():
                own = key in OWN_FIELDS or key.endswith("_seconds")
                if not own and isinstance(value, int | float) and not isinstance(value, bool):
                    names[key] = None
    return list(names)


def step_rows(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str]) -> list[Row]:
    """Return a row for each title and step (or stretch of steps), with means over seeds.

    Metrics stand in columns named by METRIC, because a user's names may be anything. Their extremes
    stand beside them.
    """
    every = stride_for(sum(len(run.steps) for runs in groups.values() for run in runs), POINTS)
    return [
        row
        for title, runs in groups.items()
        for row in merged(title, [thinned_numbers(run, metrics, every) for run in runs])
    ]


METRIC = "metric{}"
"""The column of a metric, by its place in `metrics_of`."""


def stride_for(wanted: int, points: int) -> int:
    return max(1, -(-wanted // points))


def thinned_numbers(run: Run, metrics: Sequence[str], every: int) -> dict[int, Row]:
    smoothed = {
        METRIC.format(place): moving_mean(run.steps, name)
        if run.trains_together
        else [None] * len(run.steps)
        for place, name in enumerate(metrics)
    }
    rows: dict[int, Row] = {}
    for start in range(0, len(run.steps), every):
        stretch = run.steps[start : start + every]
        last = start + len(stretch) - 1
        row: Row = {name: values[last] for name, values in smoothed.items()}
        for field, read in READ.items():
            row[field] = mean_of(read(line) for line in stretch)
        rows[int(stretch[-1]["step"])] = row
    return rows


def times(factor: float, field: str) -> Callable[[Line], float | None]:
    def read(line: Line) -> float | None:
        value = line.get(field)
        return factor * value if isinstance(value, int | float) else None

    return read


READ: Mapping[str, Callable[[Line], float | None]] = {
    "density": times(100, "density"),
    "bits": times(1, "bits_per_parameter"),
    "exposed": times(1000, "exposed_seconds"),
    "milliseconds": times(1000, "seconds"),
    "residual": times(1, "residual_norm"),
}
"""The columns beside the metrics, in %, bits, ms, ms and as a norm."""


def moving_mean(steps: Sequence[Line], name: str) -> list[float | None]:
    """Return the mean of the known values in the window up to each step."""
    window = max(1, round(SMOOTHING_SHARE * len(steps)))
    numbers = [number_of(line.get(name)) for line in steps]
    sums = [0.0, *accumulate(0.0 if number is None else number for number in numbers)]
    known = [0, *accumulate(0 if number is None else 1 for number in numbers)]
    means: list[float | None] = []
    for end in range(1, len(sums)):
        start = max(0, end - window)
        count = known[end] - known[start]
        means.append((sums[end] - sums[start]) / count if count else None)
    return means


def number_of(value: object) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def mean_of(values: Iterable[object]) -> float | None:
    numbers = [number for value in values if (number := number_of(value)) is not None]
    return statistics.fmean(numbers) if numbers else None


def merged(title: str, seeds: Sequence[dict[int, Row]]) -> list[Row]:
    rows = []
    for step in sorted(set().union(*seeds)):
        here = [seed[step] for seed in seeds if step in seed]
        row: Row = {"run": title, "step": step}
        for field in here[0]:
            known = [one[field] for one in here if one[field] is not None]
            row[field] = mean_of(known)
            if len(known) > 1 and field not in READ:
                row[f"{field}_low"], row[f"{field}_high"] = min(known), max(known)
        rows.append(row)
    return rows


def layer_rows(groups: Mapping[str, Sequence[Run]], points: int = 4 * POINTS) -> list[Row]:
    """Return threshold and density (%) by title, step and pruned parameter, of the first seed."""
    firsts = {title: runs[0] for title, runs in groups.items()}
    wanted = sum(len(run.steps) * len(run.pruned) for run in firsts.values())
    every = stride_for(wanted, points)
    return [
        {
            "run": title,
            "step": line["step"],
            "layer": layer,
            "threshold": threshold or None,
            "density": 100 * densities[layer] if densities.get(layer) else None,
        }
        for title, run in firsts.items()
        for line in run.steps[::every]
        for densities in [line.get("densities") or {}]
        for layer, threshold in (line.get("thresholds") or {}).items()
    ]


def columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the rows as columns, with numbers of four digits: they take a third of the bytes."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    made: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            words = list(dict.fromkeys(values))
            places = {word: place for place, word in enumerate(words)}
            runs = [
                [places[word], len(list(same))] for word, same in groupby(values, key=lambda w: w)
            ]
            made[name] = {"words": words, "runs": runs}
        else:
            made[name] = [digits(value) for value in values]
    return made


def digits(value: object) -> object:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
