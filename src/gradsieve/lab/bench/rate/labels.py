"""The names of methods, written into the picture beside their points."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import altair as alt

WIDTH, HEIGHT = 640, 380
EDGE = 2.5
"""A method whose best point sends less than this many times the fewest bits has its name to the
right of the point; centred, the name would leave the picture."""
data_of: Any = alt.Data
"""`alt.Data`, which altair leaves untyped."""


def label_layers(
    points: Sequence[dict[str, Any]], x: Any, y_scale: Any, colour: Any, *, higher_is_better: bool
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
        base = alt.Chart(data_of(values=[best])).encode(
            x=x, y=alt.Y("quality:Q", scale=y_scale), text="name:N"
        )
        style = {"fontSize": 13, "fontWeight": "bold", "baseline": "middle", **place}
        # A white edge keeps the name apart from lines that cross it.
        layers += [
            base.mark_text(**style, stroke="white", strokeWidth=4, strokeJoin="round"),
            base.mark_text(**style).encode(color=colour),
        ]
    return layers
