"""The table and the plot of quality against bits."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import altair as alt
from rich.table import Table

from gradsieve.lab.bench.rate.play import PlayedRun
from gradsieve.lab.charts import write_chart
from gradsieve.lab.methods.local import Local
from gradsieve.lab.methods.table import read_method
from gradsieve.lab.tables import table_of
from gradsieve.lab.workloads.workload import load_workload

DENSE = "dense"
HOOK, SIEVED_LOCAL = "gradsieve, every step", "gradsieve, local steps"
DILOCO, POST_LOCAL, MEAN_LOCAL = "DiLoCo", "post-local SGD", "local SGD"
NAMES = {"sieve": HOOK, "powersgd": "PowerSGD", "topk": "top-k"}
"""Methods that the picture calls by another name than the one they are written by."""
COLOURS = {
    HOOK: "#1f5fbf",
    SIEVED_LOCAL: "#12908a",
    "PowerSGD": "#c8452f",
    "top-k": "#8a5a2b",
    "fp16": "#7a7a7a",
    "8-bit": "#a0468c",
    DILOCO: "#8256b0",
    POST_LOCAL: "#c07d12",
    MEAN_LOCAL: "#a8952a",
}
OTHER_COLOURS = ("#3f7f3f", "#b0508a", "#40708f", "#9f6f4f")
"""Taken in turn by methods without a colour of their own."""
data_of: Any = alt.Data
"""`alt.Data`, which altair leaves untyped."""
WHAT = {
    "mnist_cnn": "A convolutional network on MNIST",
    "mlp": "A dense network on MNIST",
    "gpt": "A transformer of 10 M parameters",
    "gpt-small": "A transformer of 1 M parameters",
}
UNITS = {"held-out loss": "nats per byte", "test accuracy": "share of the images"}
WIDTH, HEIGHT = 640, 380
MOST_BITS = 40.0
"""The right end of the horizontal axis."""
EDGE = 2.5
"""A method whose best point sends less than this many times the fewest bits has its name to the
right of the point; centred, the name would leave the picture."""
TICKS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40]


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
    """Draw quality against bits as PNG or SVG, by the path's ending.

    Each comparison is one panel, in which a method is shown at its best learning rate.
    """
    panels = [panel(compared) for compared in comparisons(rows).values()]
    chart = alt.concat(*panels, columns=2, spacing=30).resolve_scale(color="independent")
    chart = chart.configure_view(stroke=None)
    write_chart(chart.configure_axis(gridColor="#eeeeee", domainColor="#999999"), path)


def panel(rows: Sequence[RateRow]) -> Any:
    """Draw one comparison: dense training as a band, and each method's points with its frontier."""
    first, workload = rows[0], load_workload(rows[0].workload)
    best = [row for row in rows if row.best]
    dense = [row for row in best if row.method == DENSE]
    points = drawn_points(best, higher_is_better=workload.higher_is_better)
    qualities = [end for row in best for end in (row.lowest, row.highest)]
    bits = [point["bits_per_parameter"] for point in points] or [MOST_BITS]
    x = alt.X(
        "bits_per_parameter:Q",
        scale=alt.Scale(type="log", domain=[0.8 * min(bits), MOST_BITS], nice=False),
        axis=alt.Axis(values=TICKS, format="~g", tickCount=len(TICKS)),
        title="bits that a rank sends per parameter and step (logarithmic)",
    )
    better = "higher" if workload.higher_is_better else "lower"
    y_title = f"{workload.metric_name}, {UNITS[workload.metric_name]} ({better} is better)"
    # Labels stand on the better side of the best points: room for a line of them is left there.
    room = 0.1 * (max(qualities) - min(qualities) or 1.0)
    y_domain = [min(qualities) - room, max(qualities) + room]
    y_scale = alt.Scale(domain=y_domain, zero=False, nice=False)
    layers = [
        *dense_layers(dense, x, y_scale, y_title),
        *point_layers(points, x, y_scale, y_title),
        *label_layers(points, x, y_scale, higher_is_better=workload.higher_is_better),
    ]
    title = alt.TitleParams(
        f"{WHAT[workload.task]}, {first.steps:,} steps on {first.ranks} ranks",
        subtitle=[
            "Every method at its best learning rate. A line joins the best settings of one method;",
            "faint points are its other settings. Bars show the range of several seeds.",
        ],
        anchor="start",
        fontSize=15,
        subtitleFontSize=12,
        subtitleColor="#555555",
    )
    return alt.layer(*layers).properties(title=title, width=WIDTH, height=HEIGHT)


def drawn_points(rows: Iterable[RateRow], *, higher_is_better: bool) -> list[dict[str, Any]]:
    """Return the rows to draw, each with its method's name and whether it lies on the frontier.

    A point lies on the frontier where no setting of the same method sends at most as many bits and
    ends better.
    """
    by_name: dict[str, list[RateRow]] = defaultdict(list)
    for row in rows:
        if (name := method_name(row.method)) is not None and row.method != DENSE:
            by_name[name].append(row)
    sign = -1.0 if higher_is_better else 1.0
    points = []
    for name, own in by_name.items():
        reached = math.inf
        for row in sorted(own, key=lambda row: (row.bits_per_parameter, sign * row.quality)):
            on_frontier = sign * row.quality < reached
            reached = min(reached, sign * row.quality)
            points.append(asdict(row) | {"name": name, "frontier": on_frontier})
    return points


def dense_layers(dense: Sequence[RateRow], x: Any, y_scale: Any, y_title: str) -> list[Any]:
    """Draw dense training as a band from its worst seed to its best, with the mean and a label."""
    if not dense:
        return []
    (row,) = dense
    data = data_of(values=[asdict(row)])
    base = alt.Chart(data)
    y = alt.Y("quality:Q", scale=y_scale, title=y_title)
    label = f"dense training, {row.bits_per_parameter:g} bits"
    return [
        base.mark_rect(color="#999999", opacity=0.3).encode(
            y=alt.Y("lowest:Q", scale=y_scale, title=y_title), y2="highest:Q"
        ),
        base.mark_rule(color="#666666", strokeDash=[4, 3]).encode(y=y),
        base.mark_text(align="right", baseline="bottom", dy=-5, fontSize=12, color="#555555")
        .encode(x=alt.value(WIDTH), y=y)
        .transform_calculate(label=repr(label))
        .encode(text="label:N"),
    ]


def point_layers(points: Sequence[dict[str, Any]], x: Any, y_scale: Any, y_title: str) -> list[Any]:
    """Draw the points, the spread of their seeds, and a line along each method's frontier."""
    best = [point for point in points if point["frontier"]]
    others = [point for point in points if not point["frontier"]]
    y = alt.Y("quality:Q", scale=y_scale, title=y_title)
    base = alt.Chart(data_of(values=best)).encode(x=x, color=colour(points))
    low = alt.Y("lowest:Q", scale=y_scale, title=y_title)
    return [
        base.mark_rule(strokeWidth=1.5).encode(y=low, y2="highest:Q"),
        base.mark_line(strokeWidth=2.5).encode(y=y),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=y),
        alt.Chart(data_of(values=others))
        .mark_point(filled=True, size=40, opacity=0.35)
        .encode(x=x, y=y, color=colour(points)),
    ]


def label_layers(
    points: Sequence[dict[str, Any]], x: Any, y_scale: Any, *, higher_is_better: bool
) -> list[Any]:
    """Write each method's name beside its best point.

    The name of a method that has a line stands where no point of it is better; the name of a single
    point to its right.
    """
    choose = max if higher_is_better else min
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        by_name[point["name"]].append(point)
    layers = []
    for own in by_name.values():
        best = choose(own, key=lambda point: float(point["quality"]))
        place: dict[str, Any] = {"dx": 10, "align": "left"}
        if sum(point["frontier"] for point in own) > 1:
            lowest = min(float(point["bits_per_parameter"]) for point in points)
            is_at_the_edge = best["bits_per_parameter"] < EDGE * lowest
            place = {"dy": -18 if higher_is_better else 18, "align": "center"}
            if is_at_the_edge:
                place |= {"align": "left", "dx": -8}
        layers.append(
            alt.Chart(data_of(values=[best]))
            .mark_text(fontSize=13, fontWeight="bold", baseline="middle", **place)
            .encode(x=x, y=alt.Y("quality:Q", scale=y_scale), text="name:N", color=colour(points))
        )
    return layers


def colour(points: Sequence[dict[str, Any]]) -> Any:
    """Give each method its colour, the same in every layer of a panel."""
    names = sorted({str(point["name"]) for point in points})
    others = cycle(OTHER_COLOURS)
    colours = [COLOURS.get(name) or next(others) for name in names]
    return alt.Color("name:N", legend=None, scale=alt.Scale(domain=names, range=colours))


def method_name(text: str) -> str | None:
    """Return what the picture calls a method, whatever its options.

    None for variants that were tried and left the code (`sieve-model`, say), and for residuals that
    fade: neither can be trained with.
    """
    try:
        method = read_method(text)
    except ValueError:
        return None
    kind, _, options = text.partition(":")
    if not isinstance(method, Local):
        return NAMES.get(kind, kind)
    settings = method.settings
    if settings.residual_decay != 1:
        return None
    if "exchange=dense" not in options.split(","):
        return SIEVED_LOCAL
    if settings.lr != 1 or settings.momentum != 0:
        return DILOCO
    return POST_LOCAL if settings.start_step else MEAN_LOCAL
