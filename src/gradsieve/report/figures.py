"""The figures of a report: Altair charts over named data, drawn in the page and as files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from gradsieve.report.distribution import WHOLE_MODEL, bars, marks
from gradsieve.report.series import Row

Scale = Literal["linear", "log"]
Control = Literal["run", "layer", "metric", "kind", "step"]

# Okabe and Ito's palette, without its black and yellow: told apart by colour-blind readers, on
# white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
MARK = "#767676"
"""Of what is written into a figure: as far from white as from the dark page."""
ALL_LAYERS = "all layers"
LAYERS_AT_ONCE = len(PALETTE) * 2
"""Where all are chosen: more lines cannot be told apart."""
HEIGHT = 260
STATIC_WIDTH = 620
STEPS = alt.X(
    "step:Q",
    title="step",
    axis=alt.Axis(tickCount=10, tickMinStep=1, format="d"),
    scale=alt.Scale(domain=[alt.ExprRef("first"), alt.ExprRef("last")], nice=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    name: str
    """Of its files, and of its place in the page."""
    title: str
    caption: str
    """What to see."""
    charts: Mapping[Scale, Any]
    """The same figure on either axis; one where only one makes sense."""
    data: Mapping[str, Sequence[Row]]
    """Rows by the name that the charts call them, as the files draw them."""
    controls: tuple[Control, ...] = ()
    """Which choices of the page the figure follows."""

    @property
    def default(self) -> Any:
        return next(iter(self.charts.values()))


def colour(field: str, title: str, words: Sequence[str], among: Sequence[str]) -> Any:
    """The same one for a word in every figure that draws some of `among`."""
    colours = [PALETTE[among.index(word) % len(PALETTE)] for word in words]
    scale = alt.Scale(domain=list(words), range=colours)
    return alt.Color(f"{field}:N", title=title, sort=list(words), scale=scale)


def dashes(field: str, title: str, words: Sequence[str], among: Sequence[str]) -> dict[str, Any]:
    """The encoding that tells lines apart where there are more words than colours."""
    if len(among) <= len(PALETTE):
        return {}
    patterns = [DASHES[among.index(word) // len(PALETTE) % len(DASHES)] for word in words]
    scale = alt.Scale(domain=list(words), range=patterns)
    return {"strokeDash": alt.StrokeDash(f"{field}:N", title=title, sort=list(words), scale=scale)}


def step_params(rows: Sequence[Row]) -> list[Any]:
    steps = [row["step"] for row in rows]
    return [
        alt.param(name="first", value=min(steps, default=0)),
        alt.param(name="last", value=max(1, *steps) if steps else 1),
    ]


def value_axis(field: str, title: str, scale: Scale, domain: Sequence[float] | None = None) -> Any:
    words = f"{title} (log scale)" if scale == "log" else title
    if scale == "log":
        axis = alt.Axis(tickCount=6, format="~g")
        return alt.Y(field, title=words, scale=alt.Scale(type="log"), axis=axis)
    return alt.Y(
        field, title=words, scale=alt.Scale(domain=list(domain) if domain else alt.Undefined)
    )


def lines(
    rows: Sequence[Row],
    *,
    data: str,
    field: str,
    title: str,
    scale: Scale,
    by: str = "run",
    by_title: str = "run",
    only: Sequence[str] = (),
    among: Sequence[str] = (),
    band: bool = False,
    domain: Sequence[float] | None = None,
) -> Any:
    """One line a word of `by`, of those in `only` if any; with `band` the extremes of seeds.

    Colours are those of `among`, the words of all figures that are to agree.
    """
    found = list(dict.fromkeys(row[by] for row in rows))
    among, words = list(among or found), list(only or found)
    base = alt.Chart(alt.NamedData(name=data))
    if only:
        base = base.transform_filter(alt.FieldOneOfPredicate(field=by, oneOf=words))
    shared = {"x": STEPS, "color": colour(by, by_title, words, among)}
    line = (
        base.mark_line(strokeWidth=1.6, clip=True)
        .encode(
            y=value_axis(f"{field}:Q", title, scale, domain),
            tooltip=[
                alt.Tooltip(f"{by}:N"),
                alt.Tooltip("step:Q"),
                alt.Tooltip(f"{field}:Q", title=title, format=".4~g"),
            ],
            **dashes(by, by_title, words, among),
            **shared,
        )
        .transform_filter(drawable(field, scale))
    )
    layers = [line]
    if band and any(f"{field}_low" in row for row in rows):
        area = (
            base.mark_area(opacity=0.18, clip=True)
            .encode(
                y=value_axis(f"{field}_low:Q", title, scale, domain),
                y2=f"{field}_high:Q",
                **shared,
            )
            .transform_filter(drawable(f"{field}_low", scale))
        )
        layers.insert(0, area)
    return sized(alt.layer(*layers), f"{title} over the steps").add_params(*step_params(rows))


def drawable(field: str, scale: Scale) -> str:
    return f"datum.{field} > 0" if scale == "log" else f"isValid(datum.{field})"


def sized(chart: Any, description: str, height: int = HEIGHT) -> Any:
    return chart.properties(width="container", height=height, description=description)


def on_both_axes(**options: Any) -> dict[Scale, Any]:
    return {scale: lines(scale=scale, **options) for scale in ("linear", "log")}


def slug(words: str) -> str:
    """As a name of a file and of an element."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def metric_figure(
    rows: Sequence[Row], metric: str, column: str, *, name: str, only: Sequence[str] = ()
) -> Figure:
    """A number that training has logged, which stands in a column of the rows."""
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
    """Drag over it to choose the steps that all others show."""
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
        caption=f"{title} of every run. Drag over it to choose the steps that the figures show.",
        charts={"linear": sized(chart, f"{title} over all steps", 70)},
        data={"steps": rows},
    )


def runs_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["run"] for row in rows))


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
        "chosen run. Thresholds that differ by powers of ten between layers are usual: gradients "
        "do.",
    ),
    "density": (
        "Density of each layer",
        "elements sent, %",
        "Which parameters of the chosen run send most. A layer that sends all the time while "
        "others starve has a threshold that is too low for it.",
    ),
}


def layer_figure(rows: Sequence[Row], field: str, first: Sequence[str]) -> Figure:
    """`first`: the layers that are drawn where none is chosen."""
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


HISTOGRAM_TITLES = {"linear": "value", "log": "magnitude (log scale)"}


def histogram_figure(shapes: Mapping[str, Any]) -> Figure:
    """`shapes` as `distribution.drawn` gives them; drawn is the last step of the first run."""
    run, kinds = next(iter(shapes.items()))
    kind, layers = next(iter(kinds.items()))
    shape = layers[WHOLE_MODEL][-1]
    return Figure(
        name="histogram",
        title="Distributions",
        caption=(
            "How the values are distributed, of all ranks together (beside plain DDP gradients are "
            "their averages), with standard deviations marked. On the linear axis see how much of "
            "a gradient lies near zero: that part is not sent. On the log axis see over how many "
            "powers of two it spreads."
        ),
        charts={"linear": histogram_chart("linear"), "log": histogram_chart("log")},
        data={
            "bars": bars(shape, "linear"),
            "marks": marks(shape, "linear"),
            "words": [{"words": in_words(run, kind, WHOLE_MODEL, shape)}],
        },
        controls=("run", "kind", "layer", "step"),
    )


def in_words(run: str, kind: str, layer: str, shape: Row) -> str:
    beyond = (
        "bins too coarse for shares"
        if None in shape["beyond"]
        else "beyond ±1 σ {:.1f} %, ±2 σ {:.1f} %".format(*shape["beyond"])
    )
    return f"{run}, {kind}, {layer}, step {shape['step']}: σ {shape['deviation']:.3g}, {beyond}"


def histogram_chart(scale: Scale) -> Any:
    axis = alt.Scale(type="log", base=2) if scale == "log" else alt.Scale(nice=False, zero=False)
    form = ".1e" if scale == "log" else ".2~g"
    x = alt.X(
        "low:Q",
        title=HISTOGRAM_TITLES[scale],
        scale=axis,
        axis=alt.Axis(format=form, labelOverlap=True, tickCount=8),
    )
    share = "share of the elements, %"
    tooltip = [
        alt.Tooltip("low:Q", title="from", format=".3g"),
        alt.Tooltip("high:Q", title="to", format=".3g"),
        alt.Tooltip("share:Q", title="%", format=".3g"),
    ]
    bar = alt.Chart(alt.NamedData(name="bars"))
    if scale == "linear":
        drawn = bar.mark_rect(color=PALETTE[0], opacity=0.8).encode(
            x=x,
            x2="high:Q",
            y=alt.Y("share:Q", title=share),
            y2=alt.Y2Datum(0),
            tooltip=tooltip,
        )
    else:
        drawn = bar.mark_line(interpolate="step-after", strokeWidth=1.8).encode(
            x=x,
            y=alt.Y("share:Q", title=f"{share}, of an octave"),
            color=alt.Color(
                "sign:N",
                title="sign",
                scale=alt.Scale(domain=["−", "+"], range=[PALETTE[1], PALETTE[0]]),
            ),
            tooltip=tooltip,
        )
    marked = alt.Chart(alt.NamedData(name="marks"))
    rule = marked.mark_rule(strokeDash=[4, 3], color=MARK).encode(x="at:Q")
    label = marked.mark_text(align="left", dx=3, baseline="top", color=MARK).encode(
        x="at:Q", y=alt.value(0), text="name:N"
    )
    words = (
        alt.Chart(alt.NamedData(name="words"))
        .mark_text(align="left", baseline="bottom", color=MARK)
        .encode(x=alt.value(0), y=alt.value(-6), text="words:N")
    )
    return sized(alt.layer(drawn, rule, label, words), "Histogram with standard deviations marked")


STAGES = ("compute", "select and encode", "exchange and decode")
STAGE_COLOURS = ("#009E73", "#E69F00", "#CC79A7")


def time_figure(rows: Sequence[Row]) -> Figure:
    """`rows` of run, stage, order and milliseconds."""
    runs = runs_of(rows)
    chart = (
        alt.Chart(alt.NamedData(name="stages"))
        .mark_bar()
        .encode(
            x=alt.X("milliseconds:Q", title="median step, ms"),
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
    """Rows of `bench step`, from a file of that name."""
    data = f"ratios-{slug(table)}"
    methods = list(dict.fromkeys(row["method"] for row in rows))
    chart = (
        alt.Chart(alt.NamedData(name=data))
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X("ratio:Q", title="times the lock-step step (log scale)").scale(type="log"),
            y=alt.Y("where:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
            color=colour("method", "method", methods, methods),
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
