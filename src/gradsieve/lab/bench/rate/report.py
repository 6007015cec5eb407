"""The table and the plot of quality against bits."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
from rich.table import Table

from gradsieve.lab.bench.rate.play import PlayedRun
from gradsieve.lab.charts import write_chart
from gradsieve.lab.tables import table_of
from gradsieve.lab.workloads.workload import load_workload

DENSE, LOCAL = "dense", "local"


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
        rows.append(
            RateRow(
                workload=key[0],
                steps=key[1],
                ranks=key[2],
                method=key[3],
                learning_rate=key[4],
                seeds=len(group),
                bits_per_parameter=statistics.mean(run.bits_per_parameter for run in group),
                quality=means[key],
                lowest=min(run.quality for run in group),
                highest=max(run.quality for run in group),
                own_rate=key[4] == workload.learning_rate,
                best=len(group) == most and means[key] == choose(compared),
            )
        )
    return sorted(rows, key=lambda row: (row.workload, row.steps, -row.bits_per_parameter))


def comparisons(rows: list[RateRow]) -> dict[tuple[str, int, int], list[RateRow]]:
    """Group the rows that can be compared: those of one workload, number of steps and of ranks."""
    groups: dict[tuple[str, int, int], list[RateRow]] = defaultdict(list)
    for row in rows:
        groups[row.workload, row.steps, row.ranks].append(row)
    return groups


def rate_tables(rows: list[RateRow]) -> list[Table]:
    tables = []
    for (workload, steps, ranks), compared in comparisons(rows).items():
        metric = load_workload(workload).metric_name
        table = table_of(
            ("method", "rate", "seeds", "bits a parameter", "quality", "spread"),
            title=f"{workload}: {metric}, {steps} steps, {ranks} ranks",
            caption="rate: of learning, * the method's best; spread: of the seeds",
            words=("method",),
        )
        # A method's options may be long: they are folded, numbers are not.
        for number, column in enumerate(table.columns):
            column.no_wrap, column.overflow = number > 0, "fold"
        for row in compared:
            table.add_row(
                row.method.replace(",", ", "),
                f"{row.learning_rate:g}{'*' if row.best else ' '}",
                str(row.seeds),
                f"{row.bits_per_parameter:.3f}",
                f"{row.quality:.4f}",
                f"{row.lowest:.4f}–{row.highest:.4f}" if row.seeds > 1 else "",
            )
        tables.append(table)
    return tables


def draw(rows: list[RateRow], path: Path) -> None:
    """Draw the methods at the workload's own learning rate and at their best; to a .png or .svg."""
    panels = [
        panel(f"{workload}, {steps} steps, {ranks} ranks: {which}", shown)
        for (workload, steps, ranks), compared in comparisons(rows).items()
        for which, shown in (
            ("own learning rate", [row for row in compared if row.own_rate]),
            ("each method's best", [row for row in compared if row.best]),
        )
        if shown
    ]
    write_chart(alt.concat(*panels, columns=2).configure_axis(gridColor="#eeeeee"), path)


def panel(title: str, rows: list[RateRow]) -> Any:
    """Draw a point for each method, the spread of its seeds, and the dense runs as a band."""
    data: Any = alt.Data
    points = [asdict(row) | {"family": family(row.method)} for row in rows]
    metric = load_workload(rows[0].workload).metric_name
    dense = [point for point in points if point["method"] == DENSE]
    others = [point for point in points if point["method"] != DENSE]
    bits = alt.X("bits_per_parameter:Q", scale=alt.Scale(type="log"), title="bits a parameter")
    quality = alt.Y("quality:Q", scale=alt.Scale(zero=False), title=metric)
    colour = alt.Color(
        "family:N",
        title=None,
        legend=alt.Legend(labelLimit=0),
        scale=alt.Scale(scheme="category10"),
    )
    base = alt.Chart(data(values=others)).encode(x=bits, color=colour)
    spread = base.mark_rule().encode(y=alt.Y("lowest:Q", title=metric), y2="highest:Q")
    # Local steps differ in more than one setting: no line leads from one to the next.
    graded = [point for point in others if not str(point["family"]).startswith(LOCAL)]
    lines = alt.Chart(data(values=graded)).mark_line().encode(x=bits, color=colour, y=quality)
    marks = base.mark_point(filled=True).encode(y=quality)
    band = alt.Chart(data(values=dense)).mark_rect(color="#999999", opacity=0.4)
    level = alt.Chart(data(values=dense)).mark_rule(color="#555555", strokeDash=[4, 3])
    layers = (
        band.encode(y="lowest:Q", y2="highest:Q"),
        level.encode(y=quality),
        spread,
        lines,
        marks,
    )
    return alt.layer(*layers).properties(title=title, width=360, height=280)


def family(method: str) -> str:
    """Return the method without its density, rank or multiple, and without `min_numel`."""
    name, _, options = method.partition(":")
    if name == LOCAL:
        what = "all" if "exchange=dense" in options else "sieve"
        return (
            f"{LOCAL} steps, {what}{', after synchronous ones' if 'start_step' in options else ''}"
        )
    first, *others = options.split(",")
    policy = first.partition("=")[0] if "=" in first else ""
    kept = [option for option in others if not option.startswith("min_numel")]
    return ", ".join([f"{name} {policy}".strip(), *kept])
