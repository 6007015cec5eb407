"""The demo's plots: Altair charts, written as PNG and SVG."""

import statistics
from pathlib import Path
from typing import Any

import altair as alt

from gradsieve.charts import write_chart
from gradsieve.demo.table import Row

COLOURS = {
    # Okabe and Ito's palette: told apart by colour-blind readers.
    "ddp": "#000000",
    "lock-step": "#999999",
    "auto": "#009E73",
    "sigma-2": "#0072B2",
    "unsent-mean": "#D55E00",
}
STAGES = ("compute", "select and encode", "exchange and decode")
STAGE_COLOURS = ("#009E73", "#E69F00", "#CC79A7")
WIDTH, HEIGHT = 520, 240
SMOOTHING = 10


def write_plots(rows: list[Row], out: Path) -> dict[str, str]:
    """Write each plot as NAME.png and NAME.svg; returns the SVG texts by name."""
    charts = {
        "threshold": threshold_chart(rows),
        "density": density_chart(rows),
        "accuracy": accuracy_chart(rows),
        "time": time_chart(rows),
    }
    return {name: write_styled(chart, name, out) for name, chart in charts.items()}


def write_styled(chart: Any, name: str, out: Path) -> str:
    styled = chart.configure_view(stroke=None).configure_legend(orient="top", labelLimit=0)
    for ending in ("png", "svg"):
        write_chart(styled, out / f"{name}.{ending}")
    return (out / f"{name}.svg").read_text()


def sieved(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.method.sieved]


def threshold_chart(rows: list[Row]) -> Any:
    points = [
        {"step": record["step"], "parameter": name, "threshold": value, "method": row.method.title}
        for row in sieved(rows)
        for record in row.records
        for name, value in record["thresholds"].items()
        if value
    ]
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=1.2)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("threshold:Q", title="threshold", scale=alt.Scale(type="log")),
            color=alt.Color(
                "parameter:N",
                title="parameter",
                scale=alt.Scale(range=["#0072B2", "#D55E00", "#009E73", "#CC79A7"]),
            ),
            strokeDash=alt.StrokeDash(
                "method:N", title="method", legend=alt.Legend(symbolSize=300)
            ),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def colour(rows: list[Row]) -> Any:
    return alt.Color(
        "method:N",
        title="method",
        scale=alt.Scale(
            domain=[row.method.title for row in rows],
            range=[COLOURS[row.method.name] for row in rows],
        ),
    )


def density_chart(rows: list[Row]) -> Any:
    chosen = sieved(rows)
    points = [
        {"step": r["step"], "density": 100 * r["density"], "method": row.method.title}
        for row in chosen
        for r in row.records
        if r["density"] > 0
    ]
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("density:Q", title="elements sent, % (log scale)", scale=alt.Scale(type="log")),
            color=colour(chosen),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def accuracy_chart(rows: list[Row]) -> Any:
    chosen = [row for row in rows if row.method.exchanges]
    points = [
        {"step": step, "accuracy": 100 * value, "method": row.method.title}
        for row in chosen
        for step, value in smoothed([record["accuracy"] for record in row.records])
    ]
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y(
                "accuracy:Q",
                title=f"training accuracy, %, mean of {SMOOTHING} batches",
                scale=alt.Scale(domain=[0, 100]),
            ),
            color=colour(chosen),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def smoothed(values: list[float]) -> list[tuple[int, float]]:
    return [
        (end - 1, statistics.fmean(values[end - SMOOTHING : end]))
        for end in range(SMOOTHING, len(values) + 1)
    ]


def time_chart(rows: list[Row]) -> Any:
    bars = [
        {
            "method": row.method.title,
            "stage": stage,
            "order": place,
            "milliseconds": 1000 * seconds,
        }
        for row in rows
        for place, (stage, seconds) in enumerate(stage_seconds(row).items())
    ]
    return (
        alt.Chart(alt.Data(values=bars))
        .mark_bar()
        .encode(
            x=alt.X("milliseconds:Q", title="median step, ms"),
            y=alt.Y("method:N", title=None, sort=[row.method.title for row in rows]),
            color=alt.Color(
                "stage:N",
                title="time in",
                sort=list(STAGES),
                scale=alt.Scale(domain=list(STAGES), range=list(STAGE_COLOURS)),
            ),
            order=alt.Order("order:Q"),
        )
        .properties(width=WIDTH, height=40 * len(rows))
    )


def stage_seconds(row: Row) -> dict[str, float]:
    """Median seconds of a step by stage: compute is the limit, the rest is what the method adds.

    An exchange runs beside the backward pass, so that only what it adds can be told.
    """
    step, limit = row.result.step_seconds, row.result.limit_seconds
    added = max(0.0, step - limit) if row.method.exchanges else 0.0
    if not row.method.sieved:
        return dict(zip(STAGES, (step - added, 0.0, added), strict=True))
    records = row.records[len(row.records) // 10 :]
    ours = ("rotate_seconds", "select_seconds", "encode_seconds")
    select = min(added, statistics.median(sum(r[stage] for stage in ours) for r in records))
    return dict(zip(STAGES, (step - added, select, added - select), strict=True))
