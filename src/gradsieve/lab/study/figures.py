"""The figures that only the study has."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from gradsieve.lab.report.figure import PALETTE, Figure, Scale, colour, lines, runs_of, sized
from gradsieve.lab.report.series import Row


def bottleneck_figure(rows: Sequence[Row]) -> Figure:
    """Draw rows of name, kind ("link", "network", "run") and millions of float32 a second."""
    kinds = {"link": PALETTE[0], "network": PALETTE[1], "sent in training": PALETTE[2]}
    chart = (
        alt.Chart(alt.NamedData(name="rates"))
        .mark_bar()
        .encode(
            x=alt.X("millions:Q", title="millions a second and rank"),
            y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
            color=alt.Color(
                "kind:N",
                title=None,
                sort=list(kinds),
                scale=alt.Scale(domain=list(kinds), range=list(kinds.values())),
            ),
            tooltip=["name:N", alt.Tooltip("millions:Q", format=".2f")],
        )
    )
    return Figure(
        name="bottleneck",
        title="What the link carries, and what the network wants",
        caption=(
            "What the network wants is all its gradients at the pace of steps that wait for "
            "nobody. Where that is more than the link carries, training waits for the network. "
            "What a run sends is its bytes, headers included, as float32 values."
        ),
        charts={"linear": sized(chart, "Rates in float32 values a second", 30 * len(rows) + 20)},
        data={"rates": rows},
    )


def waiting_figure(rows: Sequence[Row]) -> Figure:
    """Draw rows of run and share in %."""
    names = [row["run"] for row in rows]
    chart = (
        alt.Chart(alt.NamedData(name="waiting"))
        .mark_bar(color=PALETTE[3])
        .encode(
            x=alt.X(
                "share:Q",
                title="share of a step, %",
                scale=alt.Scale(domain=[0, 100]),
            ),
            y=alt.Y("run:N", title=None, sort=names, axis=alt.Axis(labelLimit=190)),
            tooltip=["run:N", alt.Tooltip("share:Q", format=".1f")],
        )
    )
    return Figure(
        name="waiting",
        title="What the exchange adds",
        caption=(
            "1 − (lock-step step) / (step), medians of the same run: lock-step exchanges one "
            "4-byte number a step and nothing else. The rest is waiting, and what selecting and "
            "encoding take from the computation."
        ),
        charts={"linear": sized(chart, "What the exchange adds", 26 * len(rows) + 20)},
        data={"waiting": rows},
    )


def trend_figure(rows: Sequence[Row], title: str, name: str, words: str) -> Figure:
    """Draw the thresholds of all layers over the steps of one run; `words` say how they moved."""
    charts: dict[Scale, Any] = {
        scale: lines(
            rows,
            data=name,
            field="threshold",
            title="threshold",
            scale=scale,
            by="layer",
            by_title="layer",
        )
        for scale in ("log", "linear")
    }
    return Figure(
        name=f"trend-{name}",
        title=f"Thresholds, {title}",
        caption=(
            f"{words} Where layers differ and move as the network learns, no fixed threshold fits "
            "them all."
        ),
        charts=charts,
        data={name: rows},
        controls=("step",),
    )


def test_figure(rows: Sequence[Row], titles: Sequence[str], name: str) -> Figure:
    """Draw rows of run and accuracy, one for each seed."""
    among = runs_of(rows)
    base = alt.Chart(alt.NamedData(name="tests")).transform_filter(
        alt.FieldOneOfPredicate(field="run", oneOf=list(titles))
    )
    y = alt.Y("run:N", title=None, sort=list(titles), axis=alt.Axis(labelLimit=190))
    accuracy = "test accuracy at the end"
    scale = alt.Scale(zero=False)
    spread = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("min(accuracy):Q", title=accuracy, scale=scale),
        x2="max(accuracy):Q",
        y=y,
        color=colour("run", "run", titles, among).legend(None),
    )
    seeds = base.mark_tick(thickness=2, size=16).encode(
        x=alt.X("accuracy:Q", title=accuracy, scale=scale),
        y=y,
        color=colour("run", "run", titles, among).legend(None),
        tooltip=["run:N", alt.Tooltip("accuracy:Q", format=".4f")],
    )
    mean = base.mark_point(filled=True, size=70).encode(
        x=alt.X("mean(accuracy):Q", title=accuracy, scale=scale),
        y=y,
        color=colour("run", "run", titles, among).legend(None),
    )
    chart = sized(alt.layer(spread, seeds, mean), accuracy, 30 * len(titles) + 20)
    return Figure(
        name=name,
        title="Accuracy on the test images",
        caption=(
            "A tick a seed, a point their mean. Differences smaller than the ticks' spread mean "
            "nothing."
        ),
        charts={"linear": chart},
        data={"tests": rows},
    )


def scale_figures(
    layers: Sequence[Row], steps: Sequence[Row], titles: Sequence[str], layer: str
) -> list[Figure]:
    """Draw the threshold of the largest layer and the density of the model, by scale."""
    among = runs_of(steps)
    return [
        Figure(
            name="scale-threshold",
            title=f"Threshold of {layer} by scale",
            caption=(
                "Near zero what is not sent is spread evenly, so that its mean is half of the "
                "threshold: with a scale of 2 or less the threshold falls without end. Elements "
                "that are exactly zero lower the mean further, so that a scale above 2 may "
                "fall as well, and come back when little but zeros was left. A line ends where the "
                "threshold is 0."
            ),
            charts={
                "log": lines(
                    layers,
                    data="scales",
                    field="threshold",
                    title=f"threshold of {layer}",
                    scale="log",
                    by_title="rule",
                    only=titles,
                    among=among,
                )
            },
            data={"scales": layers},
            controls=("step",),
        ),
        Figure(
            name="scale-density",
            title="Elements sent by scale",
            caption=(
                "Of all parameters, in the same runs. Exact zeros are never sent, whatever the "
                "threshold."
            ),
            charts={
                "log": lines(
                    steps,
                    data="steps",
                    field="density",
                    title="elements sent, %",
                    scale="log",
                    by_title="rule",
                    only=titles,
                    among=among,
                )
            },
            data={"steps": steps},
            controls=("step",),
        ),
    ]


def rates(
    shown: Mapping[str, float], link_theory: float | None, link: float, wanted: float
) -> list[Row]:
    """Return the rows of millions of float32 a second; `shown` are the runs."""
    rows: list[Row] = [
        {"name": "link, in theory", "kind": "link", "millions": link_theory},
        {"name": "link, measured", "kind": "link", "millions": link},
        {"name": "the network wants", "kind": "network", "millions": wanted},
        *(
            {"name": title, "kind": "sent in training", "millions": sent}
            for title, sent in shown.items()
        ),
    ]
    return [row for row in rows if row["millions"] is not None]
