"""The picture of quality against bits."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import altair as alt

from gradsieve.lab.bench.rate.labels import BITS, HEIGHT, WIDTH, Frame, label_layers
from gradsieve.lab.bench.rate.names import (
    DENSE,
    OPTIMIZERS,
    TASKS,
    UNITS,
    colours_of,
    drawn_name,
    shape_of,
)
from gradsieve.lab.bench.rate.rows import RateRow, comparisons
from gradsieve.lab.charts import write_chart
from gradsieve.lab.workloads.workload import load_workload

data_of: Any = alt.Data
"""`alt.Data`, which altair leaves untyped."""
MOST_BITS = 40.0
"""The right end of the horizontal axis."""
TICKS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40]
SUBTITLE = [
    "Every method at its best learning rate. A line joins the best settings of one method;",
    "faint points are its other settings. Bars show the range of several seeds.",
]
HOLLOW = "Hollow: the same, were the positions of elements sent at their entropy."
TRIANGLES = "Triangles: trained with Muon."


def draw(
    rows: Iterable[RateRow], path: Path, *, together: bool = False, least_bits: float = math.inf
) -> None:
    """Draw quality against bits as PNG or SVG, by the path's ending.

    Each comparison is one panel, in which a method is shown at its best learning rate.

    Args:
        together: whether all of gradsieve is one method, with one frontier.
        least_bits: the left end of the axis, unless a point lies to its left.
    """
    panels = [
        panel(compared, together=together, least_bits=least_bits)
        for compared in comparisons(rows).values()
    ]
    chart = alt.concat(*panels, columns=2, spacing=30).resolve_scale(color="independent")
    chart = chart.configure_view(stroke=None)
    write_chart(chart.configure_axis(gridColor="#eeeeee", domainColor="#999999"), path)


def panel(rows: Sequence[RateRow], *, together: bool, least_bits: float) -> Any:
    """Draw one comparison: dense training as bands, and each method's points with its frontier."""
    first, workload = rows[0], load_workload(rows[0].workload)
    best = [row for row in rows if row.best]
    dense = [row for row in best if row.method == DENSE]
    points = drawn_points(best, higher_is_better=workload.higher_is_better, together=together)
    drawn = [*points, *map(asdict, dense)]
    qualities = [point[end] for point in drawn for end in ("lowest", "highest")] or [0.0]
    bits = [bit for point in points for bit in bits_of(point)] or [MOST_BITS]
    x_domain = (min(0.8 * min(bits), least_bits), MOST_BITS)
    x_scale = alt.Scale(type="log", domain=x_domain, nice=False)
    x, x_at_entropy = (bits_axis(field, x_scale) for field in BITS)
    better = "higher" if workload.higher_is_better else "lower"
    y_title = f"{workload.metric_name}, {UNITS[workload.metric_name]} ({better} is better)"
    # Names stand beside points, so that room for a line of them is left.
    room = 0.1 * (max(qualities) - min(qualities) or 1.0)
    y_domain = (min(qualities) - room, max(qualities) + room)
    y_scale = alt.Scale(domain=y_domain, zero=False, nice=False)
    colour = colour_of(points)
    layers = [
        *dense_layers(dense, y_scale, y_title),
        *entropy_layers(points, x, x_at_entropy, y_scale, colour),
        *point_layers(points, x, y_scale, y_title, colour),
        *label_layers(points, [row.quality for row in dense], Frame(x_domain, y_domain), colour),
    ]
    title = alt.TitleParams(
        f"{TASKS[workload.task]}, {first.steps:,} steps on {first.ranks} ranks",
        subtitle=[*SUBTITLE, *marks_in_words(points)],
        anchor="start",
        fontSize=15,
        subtitleFontSize=12,
        subtitleColor="#555555",
    )
    return alt.layer(*layers).properties(title=title, width=WIDTH, height=HEIGHT)


def bits_axis(field: str, scale: Any) -> Any:
    return alt.X(
        f"{field}:Q",
        scale=scale,
        axis=alt.Axis(values=TICKS, format="~g", tickCount=len(TICKS)),
        title="bits that a rank sends per parameter and step (logarithmic)",
    )


def drawn_points(
    rows: Iterable[RateRow], *, higher_is_better: bool, together: bool = False
) -> list[dict[str, Any]]:
    """Return the rows to draw, each with its name and shape, and whether it is on the frontier.

    A point lies on the frontier where no setting of the same name sends at most as many bits and
    ends better.
    """
    by_name: dict[str, list[RateRow]] = defaultdict(list)
    for row in rows:
        name = drawn_name(row, together=together)
        if name is not None and row.method != DENSE:
            by_name[name].append(row)
    sign = -1.0 if higher_is_better else 1.0
    points = []
    for name, own in by_name.items():
        reached = math.inf
        for row in sorted(own, key=lambda row: (row.bits_per_parameter, sign * row.quality)):
            on_frontier = sign * row.quality < reached
            reached = min(reached, sign * row.quality)
            marks = {"name": name, "frontier": on_frontier, "shape": shape_of(row)}
            points.append(asdict(row) | marks)
    return points


def bits_of(point: dict[str, Any]) -> list[float]:
    """Return the places of a point's marks on the horizontal axis."""
    return [point[field] for field in BITS if point[field] is not None]


def marks_in_words(points: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the subtitle says of marks that not every picture has."""
    words = []
    if any(point["bits_at_entropy"] is not None for point in points):
        words.append(HOLLOW)
    if len({point["shape"] for point in points}) > 1:
        words.append(TRIANGLES)
    return [" ".join(words)] if words else []


def dense_layers(dense: Sequence[RateRow], y_scale: Any, y_title: str) -> list[Any]:
    """Draw dense training with each optimizer as a band from its worst seed to its best."""
    layers = []
    for row in dense:
        base = alt.Chart(data_of(values=[asdict(row)]))
        y = alt.Y("quality:Q", scale=y_scale, title=y_title)
        how = "training"
        if len(dense) > 1:
            how += f" with {OPTIMIZERS[load_workload(row.workload).optimizer]}"
        label = f"dense {how}, {row.bits_per_parameter:g} bits"
        layers += [
            base.mark_rect(color="#999999", opacity=0.3).encode(
                y=alt.Y("lowest:Q", scale=y_scale, title=y_title), y2="highest:Q"
            ),
            base.mark_rule(color="#666666", strokeDash=[4, 3]).encode(y=y),
            base.mark_text(align="right", baseline="bottom", dy=-5, fontSize=12, color="#555555")
            .encode(x=alt.value(WIDTH), y=y)
            .transform_calculate(label=repr(label))
            .encode(text="label:N"),
        ]
    return layers


def entropy_layers(
    points: Sequence[dict[str, Any]], x: Any, x_at_entropy: Any, y_scale: Any, colour: Any
) -> list[Any]:
    """Draw a hollow mark, joined to the plain one, where positions would take fewer bits."""
    hollow = [point for point in points if point["bits_at_entropy"] is not None]
    if not hollow:
        return []
    y = alt.Y("quality:Q", scale=y_scale)
    opacity = alt.condition("datum.frontier", alt.value(1.0), alt.value(0.35))
    base = alt.Chart(data_of(values=hollow)).encode(y=y, color=colour, opacity=opacity)
    return [
        base.mark_rule(strokeWidth=1, strokeDash=[2, 2]).encode(x=x, x2="bits_at_entropy:Q"),
        base.mark_point(filled=False, size=60, strokeWidth=1.5, fill="white").encode(
            x=x_at_entropy, shape=alt.Shape("shape:N", scale=None)
        ),
    ]


def point_layers(
    points: Sequence[dict[str, Any]], x: Any, y_scale: Any, y_title: str, colour: Any
) -> list[Any]:
    """Draw the points, the spread of their seeds, and a line along each method's frontier."""
    best = [point for point in points if point["frontier"]]
    others = [point for point in points if not point["frontier"]]
    y = alt.Y("quality:Q", scale=y_scale, title=y_title)
    shape = alt.Shape("shape:N", scale=None)
    base = alt.Chart(data_of(values=best)).encode(x=x, color=colour)
    low = alt.Y("lowest:Q", scale=y_scale, title=y_title)
    return [
        base.mark_rule(strokeWidth=1.5).encode(y=low, y2="highest:Q"),
        base.mark_line(strokeWidth=2.5).encode(y=y),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=y, shape=shape),
        alt.Chart(data_of(values=others))
        .mark_point(filled=True, size=40, opacity=0.35)
        .encode(x=x, y=y, color=colour, shape=shape),
    ]


def colour_of(points: Sequence[dict[str, Any]]) -> Any:
    """Give each method its colour, the same in every layer of a panel."""
    names = sorted({str(point["name"]) for point in points})
    scale = alt.Scale(domain=names, range=colours_of(names))
    return alt.Color("name:N", legend=None, scale=scale)
