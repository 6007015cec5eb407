"""The histogram of a layer at a step, with its standard deviations marked."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from gradsieve.lab.report.distribution import WHOLE_MODEL, bars, marks
from gradsieve.lab.report.figure import MARK, PALETTE, Figure, Scale, sized
from gradsieve.lab.report.series import Row

HISTOGRAM_TITLES = {"linear": "value", "log": "magnitude (log scale)"}


def histogram_figure(shapes: Mapping[str, Any]) -> Figure:
    """Draw the last step of the first run in `shapes`, which `distribution.drawn` gives."""
    run, kinds = next(iter(shapes.items()))
    kind, layers = next(iter(kinds.items()))
    shape = layers[WHOLE_MODEL][-1]
    return Figure(
        name="histogram",
        title="Distributions",
        caption=(
            "How the values are distributed, of all ranks together (beside plain DDP gradients are "
            "their averages) in the first seed, with standard deviations marked. On the linear "
            "axis see how much of a gradient lies near zero: that part is not sent. On the log "
            "axis, which has no place for zeros, see over how many powers of two it spreads."
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
