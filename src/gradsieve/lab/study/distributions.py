"""Histograms of every layer and sampled step, in one picture and in a table."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from gradsieve.lab.report.distribution import (
    KINDS,
    bars,
    marks,
    percent_in_words,
    shape_of,
    with_whole,
)
from gradsieve.lab.report.figure import MARK, PALETTE
from gradsieve.lab.report.series import Row
from gradsieve.lab.report.source import Counted
from gradsieve.recording.histogram import Histogram

GRID_SIZE = 130


def grid_rows(counted: Sequence[Counted], kind: str) -> dict[str, list[Row]]:
    """Return the rows of bars and of marks, of every layer and sampled step."""
    shapes = [
        (layer, one.step, shape_of(histogram))
        for one in counted
        for layer, histogram in with_whole(one.histograms.get(kind, {})).items()
    ]
    return {
        f"{name}": [
            row | {"layer": layer, "step": step, "beyond": beyond_words(shape)}
            for layer, step, shape in shapes
            for row in make(shape, "linear")
        ]
        for name, make in (("bars", bars), ("marks", marks))
    }


def beyond_words(shape: Row) -> str:
    one, two = shape["beyond"]
    return "– / –" if one is None or two is None else f"{one:.3g} / {two:.3g} %"


def grid_chart(layers: Sequence[str], title: str) -> Any:
    """Draw a histogram for each layer (row) and step (column) from the data "cells"."""
    x = alt.X("low:Q", title=None, axis=alt.Axis(tickCount=3, format=".1~e"))
    bar = (
        alt.Chart()
        .mark_rect(color=PALETTE[0])
        .encode(
            x=x,
            x2="high:Q",
            y=alt.Y("share:Q", title="%", axis=alt.Axis(tickCount=3)),
            y2=alt.Y2Datum(0),
        )
        .transform_filter("isValid(datum.share)")
    )
    rule = (
        alt.Chart()
        .mark_rule(strokeDash=[3, 2], color=PALETTE[1])
        .encode(x="at:Q")
        .transform_filter("isValid(datum.at)")
    )
    words = (
        alt.Chart()
        .mark_text(align="right", baseline="top", fontSize=9, color=MARK)
        .encode(x=alt.value(GRID_SIZE), y=alt.value(1), text="beyond:N")
        .transform_aggregate(groupby=["beyond"])
    )
    return (
        alt.layer(bar, rule, words, data=alt.NamedData(name="cells"))
        .properties(width=GRID_SIZE, height=70)
        .facet(
            row=alt.Row(
                "layer:N",
                sort=list(layers),
                title=None,
                header=alt.Header(labelAngle=0, labelAlign="left"),
            ),
            column=alt.Column("step:O", title="after so many steps"),
        )
        .resolve_scale(x="independent", y="independent")
        .properties(title=title)
    )


GRID_KINDS = ("weight", "gradient", "accumulated")


def grids(run: str, counted: Sequence[Counted]) -> dict[str, dict[str, Any]]:
    """Return Vega-Lite specifications with their data, by kind."""
    made = {}
    for kind in GRID_KINDS:
        rows = grid_rows(counted, kind)
        if rows["bars"]:
            layers = list(dict.fromkeys(row["layer"] for row in rows["bars"]))
            cells = [*rows["bars"], *rows["marks"]]
            title = f"{run}: {kind}; at the right, shares beyond ±1 σ / ±2 σ"
            made[kind] = grid_chart(layers, title).to_dict() | {"datasets": {"cells": cells}}
    return made


def share_rows(counted: Sequence[Counted]) -> list[list[str]]:
    """Return a row for each kind and sampled step, under SHARE_HEADINGS."""
    rows = []
    for kind in KINDS:
        for one in counted:
            by_layer = one.histograms.get(kind)
            if not by_layer:
                continue
            whole = with_whole(by_layer)
            model = next(iter(whole.values()))
            layers = list(by_layer.values())
            rows.append(
                [
                    kind,
                    str(one.step),
                    f"{model.deviation:.3g}",
                    *(percent_in_words(model.share_beyond(k)) for k in (1, 2)),
                    *(between(layers, k) for k in (1, 2)),
                ]
            )
    return rows


def between(layers: Sequence[Histogram], k: int) -> str:
    """Return the smallest and the largest share among layers whose bins are fine enough."""
    shares = [share for layer in layers if (share := layer.share_beyond(k)) is not None]
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %" if shares else "–"


SHARE_HEADINGS = (
    "whole model",
    "steps done",
    "σ",
    "beyond ±1 σ",
    "beyond ±2 σ",
    "of layers, ±1 σ",
    "of layers, ±2 σ",
)
