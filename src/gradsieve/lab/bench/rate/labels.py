"""The names of methods, written into the picture where they cover nothing."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import altair as alt

BITS = ("bits_per_parameter", "bits_at_entropy")
"""Where a point has marks on the horizontal axis."""
WIDTH, HEIGHT = 640, 380
LETTER, LINE = 7.6, 16
"""The width of a letter and the height of a line, in pixels, of what names are written in."""
GAP = 10
"""Pixels between a point and its name."""
SAMPLES = 24
"""Points that stand for a line, or for a rule across the panel."""
data_of: Any = alt.Data
"""`alt.Data`, which altair leaves untyped."""


class Place(NamedTuple):
    """A point of the panel, in pixels from its upper left corner."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Frame:
    """What the axes of a panel span."""

    bits: tuple[float, float]
    quality: tuple[float, float]

    def place(self, bits: float, quality: float) -> Place:
        least, most = self.bits
        low, high = self.quality
        return Place(
            WIDTH * math.log(bits / least) / math.log(most / least),
            HEIGHT * (high - quality) / (high - low),
        )


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, place: Place) -> bool:
        return self.left <= place.x <= self.right and self.top <= place.y <= self.bottom

    def meets(self, other: "Box") -> bool:
        apart = self.right < other.left or other.right < self.left
        return not (apart or self.bottom < other.top or other.bottom < self.top)


def label_layers(
    points: Sequence[dict[str, Any]], dense: Iterable[float], frame: Frame, colour: Any
) -> list[Any]:
    """Write each method's name once, beside that point of its frontier where it covers least.

    Args:
        dense: the qualities of dense training, whose rules are labelled at their right ends.
    """
    layers = []
    for name, box in placed(points, dense, frame).items():
        text = alt.Chart(data_of(values=[{"name": name}])).mark_text(
            fontSize=13, fontWeight="bold", baseline="middle", align="center"
        )
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        layers.append(text.encode(x=alt.value(x), y=alt.value(y), text="name:N", color=colour))
    return layers


def placed(
    points: Sequence[dict[str, Any]], dense: Iterable[float], frame: Frame
) -> dict[str, Box]:
    """Return the box of each name."""
    frontiers: dict[str, list[Place]] = defaultdict(list)
    covered: list[Place] = []
    for point in points:
        marks = [bits for field in BITS if (bits := point[field]) is not None]
        covered += [frame.place(bits, point["quality"]) for bits in marks]
        if point["frontier"]:
            place = frame.place(point["bits_per_parameter"], point["quality"])
            frontiers[point["name"]].append(place)
    taken: list[Box] = []
    for quality in dense:
        rule = frame.place(frame.bits[1], quality).y
        covered += between(Place(0, rule), Place(WIDTH, rule))
        taken.append(Box(0.7 * WIDTH, rule - LINE - 5, WIDTH, rule))
    for own in frontiers.values():
        for start, end in pairwise(own):
            covered += between(start, end)
    boxes = {}
    for name, own in frontiers.items():
        # The best point of a frontier is its last one.
        candidates = [box for place in reversed(own) for box in around(place, LETTER * len(name))]
        costs = [cost(box, covered, taken) for box in candidates]
        boxes[name] = candidates[costs.index(min(costs))]
        taken.append(boxes[name])
    return boxes


def between(start: Place, end: Place) -> Iterator[Place]:
    """Yield places along a line."""
    for number in range(SAMPLES + 1):
        share = number / SAMPLES
        yield Place(start.x + share * (end.x - start.x), start.y + share * (end.y - start.y))


def around(place: Place, width: float) -> Iterator[Box]:
    """Yield the boxes of a name to the right of a point, below, above and to the left of it."""
    x, y = place
    yield Box(x + GAP, y - LINE / 2, x + GAP + width, y + LINE / 2)
    for shift in (GAP, -GAP - LINE):
        yield Box(x - width / 2, y + shift, x + width / 2, y + shift + LINE)
    yield Box(x - GAP - width, y - LINE / 2, x - GAP, y + LINE / 2)


def cost(box: Box, covered: Iterable[Place], taken: Iterable[Box]) -> int:
    """Count what a name would cover; other names weigh more, and the panel's edge most."""
    is_outside = box.left < 0 or box.right > WIDTH or box.top < 0 or box.bottom > HEIGHT
    names = sum(box.meets(other) for other in taken)
    return sum(box.holds(place) for place in covered) + 10 * names + 1000 * is_outside
