"""The figures of training runs and of benchmarks: Altair charts over named data."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from gradsieve.lab.report.figure import (
    PALETTE,
    Figure,
    Scale,
    colour,
    lines,
    on_both_axes,
    runs_of,
    sized,
    slug,
)
from gradsieve.lab.report.series import Row

ALL_LAYERS = "all layers"
LAYERS_AT_ONCE = len(PALETTE) * 2
"""The most layers that are drawn at once: more lines cannot be told apart."""


def metric_figure(
    rows: Sequence[Row], metric: str, column: str, *, name: str, only: Sequence[str] = ()
) -> Figure:
    """Draw a number that training has logged, from a column of the rows."""
    values = [row[column] for row in rows if row.get(column) is not None]
    is_share = metric == "accuracy" and max(values, default=0) <= 1
    spread = any(f"{column}_low" in row for row in rows)
    options: dict[str, Any] = {"rows": rows, "data": "steps", "field": column, "band": True}
    options |= {"title": metric, "only": only}
    return Figure(
        name=name,
        title=f"Training {metric}" if metric in ("accuracy", "loss") else metric,
        caption=(
            "As the training loop has logged it; each point is the mean of the last 2 % of the "
            "run's steps." + (" The band holds all seeds, the line is their mean." * spread)
        ),
        charts={
            "linear": lines(scale="linear", domain=(0, 1) if is_share else None, **options),
            "log": lines(scale="log", **options),
        },
        data={"steps": rows},
        controls=("step",),
    )


def overview_figure(rows: Sequence[Row], field: str, title: str) -> Figure:
    """Draw a figure over which a reader drags to choose the steps that all others show."""
    words = runs_of(rows)
    chart = (
        alt.Chart(alt.NamedData(name="steps"))
        .mark_line(strokeWidth=1.2)
        .encode(
            x=alt.X(
                "step:Q",
                title=None,
                axis=alt.Axis(tickCount=10, format="d"),
                scale=alt.Scale(nice=False),
            ),
            y=alt.Y(f"{field}:Q", title=None, axis=alt.Axis(tickCount=2)),
            color=colour("run", "run", words, words).legend(None),
        )
        .transform_filter(f"isValid(datum.{field})")
        .add_params(alt.selection_interval(name="brush", encodings=["x"]))
    )
    return Figure(
        name="overview",
        title="Steps",
        caption=(
            f"{title[0].upper()}{title[1:]} of every run. Drag over it to choose the steps that "
            "the figures show."
        ),
        charts={"linear": sized(chart, f"{title} over all steps", 70)},
        data={"steps": rows},
    )


DRAWN_LINES = {
    "density": (
        "What is sent",
        "elements sent, %",
        "The share of all elements whose accumulated magnitude passed the threshold; 100 in dense "
        "steps.",
    ),
    "bits": (
        "Bits a parameter",
        "bits a parameter and step",
        "Of this rank's frames; float32 would be 32. Steps that make no frames count what their "
        "all-reduce carries, or the interface's counter where a run was measured.",
    ),
    "exposed": (
        "Exposed time",
        "exposed time, ms",
        "What the exchange adds to a step: the wait that the backward pass did not hide, and the "
        "processor time taken from it. Dense steps are not timed.",
    ),
    "residual": (
        "What is kept",
        "norm of the residuals",
        "The Euclidean norm of all that was pruned and not sent yet, of rank 0. It should settle: "
        "what grows on and on arrives too late.",
    ),
}


def line_figure(rows: Sequence[Row], field: str) -> Figure:
    title, axis, caption = DRAWN_LINES[field]
    charts = on_both_axes(rows=rows, data="steps", field=field, title=axis)
    if field in ("density", "bits"):
        charts = {"log": charts["log"], "linear": charts["linear"]}
    return Figure(
        name=field,
        title=title,
        caption=caption,
        charts=charts,
        data={"steps": rows},
        controls=("step",),
    )


LAYER_LINES = {
    "threshold": (
        "Thresholds",
        "threshold, in units of the gradient",
        "What an accumulated gradient has to exceed to be sent, for each pruned parameter of the "
        "chosen run's first seed; lines cross dense steps, which have none. Thresholds that differ "
        "by powers of ten between layers are usual: gradients do.",
    ),
    "density": (
        "Density of each layer",
        "elements sent, %",
        "Which parameters of the chosen run send most. A layer that sends all the time while "
        "others starve has a threshold that is too low for it.",
    ),
}


def layer_figure(rows: Sequence[Row], field: str, first: Sequence[str]) -> Figure:
    """Draw a number of each layer; `first` are the layers drawn where none is chosen."""
    title, axis, caption = LAYER_LINES[field]
    charts: dict[Scale, Any] = {}
    for scale in ("log", "linear"):
        chart = lines(
            rows, data="layers", field=field, title=axis, scale=scale, by="layer", by_title="layer"
        )
        charts[scale] = chart.add_params(
            alt.param(name="run", value=runs_of(rows)[0]),
            alt.param(name="layer", value=ALL_LAYERS),
            alt.param(name="shown", value=list(first)),
        ).transform_filter(
            f"datum.run == run && (layer == '{ALL_LAYERS}' ? indexof(shown, datum.layer) >= 0 "
            ": datum.layer == layer)"
        )
    layers = {row["layer"] for row in rows}
    some = f" Of {len(layers)} layers the {len(first)} largest, unless one is chosen."
    return Figure(
        name=f"layer-{field}",
        title=title,
        caption=caption + some * (len(layers) > len(first)),
        charts=charts,
        data={"layers": rows},
        controls=("run", "layer", "step"),
    )


STAGES = ("compute", "select and encode", "exchange and decode")
STAGE_COLOURS = ("#009E73", "#E69F00", "#CC79A7")


def time_figure(rows: Sequence[Row]) -> Figure:
    """Draw rows of run, stage, order and milliseconds."""
    runs = runs_of(rows)
    chart = (
        alt.Chart(alt.NamedData(name="stages"))
        .mark_bar()
        .encode(
            x=alt.X("milliseconds:Q", title="median step, ms", axis=alt.Axis(tickCount=8)),
            y=alt.Y("run:N", title=None, sort=runs, axis=alt.Axis(labelLimit=160)),
            color=alt.Color(
                "stage:N",
                title="time in",
                sort=list(STAGES),
                scale=alt.Scale(domain=list(STAGES), range=list(STAGE_COLOURS)),
            ),
            order=alt.Order("order:Q"),
            tooltip=["run:N", "stage:N", alt.Tooltip("milliseconds:Q", format=".1f")],
        )
    )
    return Figure(
        name="time",
        title="Where a step goes",
        caption=(
            "Compute is the limit, measured in the same run: a step that exchanges one 4-byte "
            "number. The rest is what the method adds: select and encode by the clock, exchange "
            "and decode as what remains, since they run beside the backward pass."
        ),
        charts={"linear": sized(chart, "Median step by stage", 40 * len(runs))},
        data={"stages": rows},
    )


def ratio_figure(rows: Sequence[Row], table: str) -> Figure:
    """Draw the rows of `bench step` from the file `table`."""
    data = f"ratios-{slug(table)}"
    methods = list(dict.fromkeys(row["method"] for row in rows))
    chart = (
        alt.Chart(alt.NamedData(name=data))
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X("ratio:Q", title="times the lock-step step (log scale)").scale(type="log"),
            y=alt.Y("where:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
            color=colour("method", "method", methods, methods).legend(symbolType="circle"),
            shape=alt.Shape(
                "method:N", title="method", sort=methods, scale=alt.Scale(domain=methods)
            ),
            tooltip=["where:N", "method:N", alt.Tooltip("ratio:Q", format=".3f")],
        )
    )
    places = len({row["where"] for row in rows})
    return Figure(
        name=data,
        title="Steps, against the limit",
        caption=(
            "1 is lock-step: no gradient travels, one 4-byte all-reduce a step. Further left is "
            "quicker; lock-step drifts on a busy machine, so that some hundredths mean nothing."
        ),
        charts={"log": sized(chart, "Ratio to the lock-step step", 28 * places + 20)},
        data={data: rows},
    )
