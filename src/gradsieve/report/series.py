"""What charts are drawn from: rows of numbers, few enough for a page."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from gradsieve.recording.files import Line
from gradsieve.report.source import Run

Row = dict[str, Any]

OWN_FIELDS = frozenset(
    {
        "step",
        "density",
        "frame_bytes",
        "bits_per_parameter",
        "residual_norm",
        "nonfinite",
        "seconds",
        "sent_bytes",
    }
)
"""Numbers of a record that are no metric of the user's."""
POINTS = 10_000
"""Of all runs together, for each line that is drawn."""
SMOOTHING_SHARE = 0.02
"""Of a run's steps: what a point of a metric is the mean of, since batches differ."""


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """By title, in the order in which they were found."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.title, []).append(run)
    return groups


def metrics_of(runs: Iterable[Run]) -> list[str]:
    """Names of the numbers that a training loop has logged of its own."""
    names: dict[str, None] = {}
    for run in runs:
        for line in run.steps:
            for key, value in line.items():
                own = key in OWN_FIELDS or key.endswith("_seconds")
                if not own and isinstance(value, int | float) and not isinstance(value, bool):
                    names[key] = None
    return list(names)


def step_rows(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str]) -> list[Row]:
    """A row a title and step (or stretch of steps): means over seeds, extremes of metrics."""
    every = stride_for(run for runs in groups.values() for run in runs)
    return [
        row
        for title, runs in groups.items()
        for row in merged(title, [thinned_numbers(run, metrics, every) for run in runs], metrics)
    ]


def stride_for(runs: Iterable[Run]) -> int:
    return -(-sum(len(run.steps) for run in runs) // POINTS)


def thinned_numbers(run: Run, metrics: Sequence[str], every: int) -> dict[int, Row]:
    smoothed = {
        name: moving_mean(run.steps, name) if run.trains_together else [None] * len(run.steps)
        for name in metrics
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
"""Columns beside the metrics: %, bits, ms, ms, norm."""


def moving_mean(steps: Sequence[Line], name: str) -> list[float | None]:
    window = max(1, round(SMOOTHING_SHARE * len(steps)))
    values = [line.get(name) for line in steps]
    return [mean_of(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def mean_of(values: Iterable[object]) -> float | None:
    numbers = [
        float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)
    ]
    return statistics.fmean(numbers) if numbers else None


def merged(title: str, seeds: Sequence[dict[int, Row]], metrics: Sequence[str]) -> list[Row]:
    rows = []
    for step in sorted(set().union(*seeds)):
        here = [seed[step] for seed in seeds if step in seed]
        row: Row = {"run": title, "step": step}
        for field in here[0]:
            row[field] = mean_of(one[field] for one in here)
        for name in metrics:
            known = [one[name] for one in here if one[name] is not None]
            if len(known) > 1:
                row[f"{name}_low"], row[f"{name}_high"] = min(known), max(known)
        rows.append(row)
    return rows


def layer_rows(groups: Mapping[str, Sequence[Run]]) -> list[Row]:
    """A row a title, step and pruned parameter, of the first seed: threshold, density in %."""
    firsts = {title: runs[0] for title, runs in groups.items()}
    every = stride_for(firsts.values())
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
    """The rows as columns of words or of numbers with four digits: a third of the bytes."""
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
