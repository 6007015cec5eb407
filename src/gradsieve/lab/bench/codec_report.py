"""What `bench codec` prints and draws."""

from pathlib import Path
from typing import Any

import altair as alt
from rich.table import Table

from gradsieve.lab.bench.codec import CodecRow, Curve
from gradsieve.lab.bench.peers import PeerRow, error_at
from gradsieve.lab.charts import write_chart
from gradsieve.lab.tables import table_of

BOUND, LEVELS = "bound of the histogram", "gradsieve levels"
COLOURS = {
    BOUND: "#222222",
    LEVELS: "#d62728",
    "index, float32": "#9467bd",
    "bitmap, fp16": "#2ca02c",
    "8-bit": "#1f77b4",
    "PowerSGD rank 1": "#fdd0a2",
    "PowerSGD rank 2": "#fd8d3c",
    "PowerSGD rank 4": "#d94801",
}
OF_RATE = [LEVELS, "index, float32", "bitmap, fp16"]
"""Methods whose rate can be chosen."""
SHOWN = (0.004, 20.0)
SMALLEST_ERROR = 1e-6
BIT_HEADINGS = (
    "source",
    "density",
    "entropy",
    "coded",
    "ratio",
    "one block",
    "frame ratio",
    "bits a param",
    "error",
)
SPEED_HEADINGS = ("source", "density", "encode", "+ residual", "decode, add", "vs add_")
PEER_HEADINGS = (
    "source",
    "method",
    "bits a param",
    "error",
    "levels' error",
    "smaller error",
)


def bits_table(rows: list[CodecRow]) -> Table:
    table = table_of(
        BIT_HEADINGS,
        title="Bits of frames with levels",
        caption=(
            "entropy, coded: bits of position an element sent; ratio: of the two; one block: "
            "without counts of blocks; frame ratio: to the entropy of uniform positions, signs and "
            "levels; error: squared, of what arrives"
        ),
        words=("source",),
    )
    for row in rows:
        table.add_row(
            row.source,
            f"{row.density:.2%}",
            f"{row.uniform_entropy:.2f}",
            f"{row.position_bits:.2f}",
            f"{row.position_ratio:.3f}",
            f"{row.unsplit_ratio:.3f}",
            f"{row.frame_ratio:.3f}",
            f"{row.bits_per_parameter:.4f}",
            f"{row.relative_error:.4f}",
        )
    return table


def speed_table(rows: list[CodecRow]) -> Table:
    table = table_of(
        SPEED_HEADINGS,
        title="Speed of frames with levels",
        caption=(
            "million elements sent a second, one thread: encode, the same with the remainder "
            "written to the residual, decode and add to a bucket; vs add_: elements a second of "
            "select and encode, remainder and all, to those of tensor.add_"
        ),
        words=("source",),
    )
    for row in rows:
        table.add_row(
            row.source,
            f"{row.density:.2%}",
            *(f"{rate / 1e6:.0f}" for rate in (row.encode_rate, row.settle_rate, row.decode_rate)),
            f"{row.select_encode_ratio:.2f}",
        )
    return table


def peers_table(peers: list[PeerRow], curves: dict[str, Curve]) -> Table:
    table = table_of(
        PEER_HEADINGS,
        title="Beside other ways to send the same gradients",
        caption="levels' error: at as many bits, or at the most that levels were measured at",
        words=("source", "method"),
    )
    for peer in peers:
        ours = error_at(peer.bits_per_parameter, curves[peer.source])
        table.add_row(
            peer.source,
            peer.method,
            f"{peer.bits_per_parameter:.4f}",
            f"{peer.relative_error:.3g}",
            "outside" if ours is None else f"{ours:.3g}",
            "" if ours is None else ("levels" if ours <= peer.relative_error else "peer"),
        )
    return table


def draw(
    curves: dict[str, Curve], peers: list[PeerRow], bounds: dict[str, Curve], path: Path
) -> None:
    """Draw rate against error with a panel for each source; the path ends in .png or .svg."""
    points = [point(source, LEVELS, *pair) for source, curve in curves.items() for pair in curve]
    points += [point(source, BOUND, *pair) for source, line in bounds.items() for pair in line]
    for peer in peers:
        method = peer.method.split(" at ")[0]
        points.append(point(peer.source, method, peer.bits_per_parameter, peer.relative_error))
    seen = [p for p in points if SHOWN[0] <= p["bits"] <= SHOWN[1] and p["error"] > SMALLEST_ERROR]
    panels = [panel(source, [p for p in seen if p["source"] == source]) for source in curves]
    write_chart(alt.concat(*panels, columns=2).configure_axis(gridColor="#eeeeee"), path)


def point(source: str, method: str, bits: float, error: float) -> dict[str, Any]:
    return {"source": source, "method": method, "bits": bits, "error": error}


def panel(source: str, points: list[dict[str, Any]]) -> Any:
    data: Any = alt.Data
    bits = alt.X("bits:Q", scale=alt.Scale(type="log", domain=SHOWN), title="bits a parameter")
    error = alt.Y("error:Q", scale=alt.Scale(type="log"), title="relative squared error")
    scale = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    colour = alt.Color("method:N", title=None, scale=scale)
    base = alt.Chart(data(values=points), title=source).encode(x=bits, y=error, color=colour)
    of_rate = base.transform_filter(alt.FieldOneOfPredicate(field="method", oneOf=OF_RATE))
    bound = base.transform_filter(alt.FieldEqualPredicate(field="method", equal=BOUND))
    measured = base.transform_filter(alt.FieldOneOfPredicate(field="method", oneOf=[*COLOURS][1:]))
    layers = (
        bound.mark_line(strokeDash=[4, 3]),
        of_rate.mark_line(),
        measured.mark_point(filled=True),
    )
    return alt.layer(*layers).properties(width=300, height=240)
