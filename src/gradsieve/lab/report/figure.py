"""What figures share: their form, axes, colours, and lines over the steps."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from gradsieve.lab.report.series import Row

Scale = Literal["linear", "log"]
Control = Literal["run", "layer", "kind", "step"]

# Okabe and Ito's palette, without its black and yellow: told apart by colour-blind readers, on
# white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
MARK = "#767676"
"""The colour of text within a figure, as far from white as from the dark page."""
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
    """What its files and its place in the page are called."""
    title: str
    caption: str
    """What the reader can see in it."""
    charts: Mapping[Scale, Any]
    """The same figure on a linear and a logarithmic axis, or on the one that makes sense."""
    data: Mapping[str, Sequence[Row]]
    """The rows that the files draw, by the name that the charts use."""
    controls: tuple[Control, ...] = ()
    """The controls of the page that the figure follows."""

    @property
    def default(self) -> Any:
        return next(iter(self.charts.values()))


def colour(field: str, title: str, words: Sequence[str], among: Sequence[str]) -> Any:
    """Return an encoding that gives a word one colour in all figures that draw some of `among`."""
    colours = [PALETTE[among.index(word) % len(PALETTE)] for word in words]
    scale = alt.Scale(domain=list(words), range=colours)
    # Without it the legend shows the pale bands behind the lines.
    legend = alt.Legend(symbolOpacity=1, symbolType="stroke", symbolStrokeWidth=2)
    return alt.Color(f"{field}:N", title=title, sort=list(words), scale=scale, legend=legend)


def dashes(field: str, title: str, words: Sequence[str], among: Sequence[str]) -> dict[str, Any]:
    """Return the encoding that tells lines apart where there are more words than colours."""
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
    """Draw a line for each word of `by`, or of `only`; `band` adds the extremes of the seeds.

    Colours follow `among`, the words of all figures that are to agree.
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
    """Return `words` as a name of a file and of an element."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def runs_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["run"] for row in rows))
