"""Draw gain.png, the picture of the README, from docs/data/steps.json: python docs/images/gain.py

The rows are those of `gradsieve bench step`. Needs altair and vl-convert (the extra `lab`).
"""

import json
from pathlib import Path

import altair as alt

HERE = Path(__file__).parent
METHODS = {"ddp": "DDP", "fp16": "fp16", "powersgd:1": "PowerSGD, rank 1", "sieve": "gradsieve"}
LINKS = {
    f"2 ranks, {rate} each way (tbf)": rate for rate in ("1 Gbit/s", "100 Mbit/s", "20 Mbit/s")
}


def measured() -> list[dict[str, object]]:
    """The transformer's step times over lock-step, by link and method."""
    rows = [
        {
            "link": LINKS[row["link"]],
            "method": METHODS[row["method"]],
            "ratio": row["ratio"],
            "label": f"{row['ratio']:.2f}",
        }
        for row in json.loads((HERE.parent / "data" / "steps.json").read_text())
        if row["workload"] == "gpt" and row["link"] in LINKS and row["method"] in METHODS
    ]
    if len(rows) != len(LINKS) * len(METHODS):
        raise SystemExit(f"steps.json has {len(rows)} rows for {LINKS} and {METHODS}")
    return rows


def main() -> None:
    order, height = list(METHODS.values()), 72
    is_ours = alt.datum.method == METHODS["sieve"]
    axis = alt.Axis(title="step time, × lock-step (dashed)", values=[0, 1, *range(2, 16, 2)])
    base = alt.Chart().encode(
        x=alt.X("ratio:Q", scale=alt.Scale(domain=[0, 15.2]), axis=axis),
        y=alt.Y("method:N", sort=order, title=None),
    )
    color = alt.when(is_ours).then(alt.value("#009e73")).otherwise(alt.value("#b0b0b0"))
    bars = base.mark_bar().encode(color=color)
    lock_step = base.mark_rule(strokeDash=[4, 3]).encode(
        x=alt.datum(1), y=alt.value(0), y2=alt.value(height)
    )
    labels = base.mark_text(align="left", dx=5, fontSize=12).encode(text="label:N")
    header = alt.Header(
        labelOrient="top", labelAnchor="start", labelFontWeight="bold", labelFontSize=13
    )
    row = alt.Row("link:N", sort=list(LINKS.values()), title=None, header=header)
    chart = (
        alt.layer(bars, lock_step, labels, data=alt.Data(values=measured()))
        .properties(width=560, height=height, view=alt.ViewConfig(stroke=None))
        .facet(row=row, spacing=8)
        .configure_axis(labelFontSize=12, titleFontSize=12, labelLimit=200, grid=False)
    )
    chart.save(HERE / "gain.png", scale_factor=2)


if __name__ == "__main__":
    main()
