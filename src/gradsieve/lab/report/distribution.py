"""Histograms ready to be drawn, over values in even bins and over magnitudes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradsieve.lab.report.series import Row, digits
from gradsieve.lab.report.source import Counted, Run
from gradsieve.recording.histogram import BINS_A_SIGN, Histogram, edges, overall

WHOLE_MODEL = "whole model"
REACH = 4.0
"""The even bins cover this many standard deviations on either side."""
EVEN_BINS = 65
"""An odd number, so that the mean, and with it most zeros, lies within a bin."""
OCTAVE = 8
"""So many bins are drawn as one over magnitudes."""
KINDS = ("gradient", "accumulated", "residual", "weight")


def drawn(groups: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return the shapes of each title's first seed, as run → kind → layer → list."""
    found: dict[str, Any] = {}
    for title, runs in groups.items():
        if runs[0].counted:
            found[title] = shapes_of(runs[0].counted)
    return found


def shapes_of(counted: Sequence[Counted]) -> dict[str, dict[str, list[Row]]]:
    shapes: dict[str, dict[str, list[Row]]] = {}
    for one in counted:
        for kind in KINDS:
            for layer, histogram in with_whole(one.histograms.get(kind, {})).items():
                made = {"step": one.step} | shape_of(histogram)
                shapes.setdefault(kind, {}).setdefault(layer, []).append(made)
    return shapes


def with_whole(by_layer: Mapping[str, Histogram]) -> dict[str, Histogram]:
    if not by_layer:
        return {}
    return {WHOLE_MODEL: overall(by_layer.values()), **by_layer}


def shape_of(histogram: Histogram) -> Row:
    """Return a histogram's shares in %.

    "even" is [first edge, width, shares ...]; "negative" and "positive" are [exponent of the first
    magnitude, shares of octaves ...]."""
    return {
        "mean": digits(histogram.mean),
        "deviation": digits(histogram.deviation),
        "beyond": [digits(percent(histogram.share_beyond(k))) for k in (1, 2)],
        "even": even_bins(histogram),
        "negative": octaves(histogram, -1),
        "positive": octaves(histogram, 1),
    }


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def percent_in_words(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def even_bins(histogram: Histogram) -> list[object]:
    if not histogram.deviation:
        return [digits(histogram.mean - 0.5), 1, 100.0 if histogram.counted else 0.0]
    first = histogram.mean - REACH * histogram.deviation
    width = 2 * REACH * histogram.deviation / EVEN_BINS
    limits = first + width * np.arange(EVEN_BINS + 1, dtype=np.float64)
    shares = 100 * np.diff(histogram.cumulated(limits))
    # Where the mean is large beside the deviation, four digits would shift all bins.
    return [float(f"{first:.8g}"), digits(width), *(digits(float(share)) for share in shares)]


def octaves(histogram: Histogram, sign: int) -> list[object]:
    half = histogram.counts[BINS_A_SIGN + 1 :] if sign > 0 else histogram.counts[:BINS_A_SIGN][::-1]
    shares = 100 * half.reshape(-1, OCTAVE).sum(axis=1) / max(1, histogram.counted)
    filled = np.flatnonzero(shares)
    if not filled.size:
        return [0]
    first, last = int(filled[0]), int(filled[-1])
    exponent = round(np.log2(edges()[BINS_A_SIGN + 1])) + first
    return [int(exponent), *(digits(float(share)) for share in shares[first : last + 1])]


def bars(shape: Row, scale: str) -> list[Row]:
    """Return the rows of a chart; the page makes the same ones of a shape."""
    if scale == "linear":
        first, width, *shares = shape["even"]
        return [
            {"low": first + n * width, "high": first + (n + 1) * width, "share": share}
            for n, share in enumerate(shares)
        ]
    return [
        {"low": 2.0 ** (exponent + n), "high": 2.0 ** (exponent + n + 1), "share": share, "sign": s}
        for s, (exponent, *shares) in (("−", shape["negative"]), ("+", shape["positive"]))
        for n, share in enumerate(shares)
    ]


def marks(shape: Row, scale: str) -> list[Row]:
    """Return where the standard deviations lie, from the mean or as magnitudes."""
    mean, deviation = shape["mean"], shape["deviation"]
    if scale == "linear":
        names = ("−2 σ", "−1 σ", "mean", "+1 σ", "+2 σ")
        places = [(name, mean + (k - 2) * deviation) for k, name in enumerate(names)]
    else:
        places = [(f"{k} σ", k * deviation) for k in (1, 2) if deviation]
    return [{"at": at, "name": name} for name, at in places]
