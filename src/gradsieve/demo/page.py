"""One self-contained HTML page: the table and the plots, with a word on what to see."""

import html
from pathlib import Path

from gradsieve.cores import usable_cores
from gradsieve.demo.table import HEADINGS, Row, cells

CAPTIONS = {
    "accuracy": (
        "Accuracy in training",
        "Do the sieved runs learn as fast as plain DDP? Accuracy on the batches just trained on.",
    ),
    "time": (
        "Where a step goes",
        "Compute is what a step costs without any exchange, measured in the same run. The rest "
        "is what the method adds: select and encode by the clock, exchange and decode as what "
        "remains, since they run beside the backward pass.",
    ),
    "density": (
        "What is sent",
        "The share of elements whose accumulated magnitude passed the threshold.",
    ),
    "threshold": (
        "The thresholds",
        "One for each pruned parameter of rank 0. Smaller parameters travel whole.",
    ),
}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --rule: #ccc; --panel: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --rule: #444; --panel: #f4f4f4; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 34rem; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
figure { margin: .5rem 0; } figcaption { max-width: 44rem; }
figure div { background: var(--panel); padding: .5rem; border-radius: .4rem; }
svg { max-width: 100%; height: auto; display: block; overflow: visible; }
"""


def write_page(rows: list[Row], plots: dict[str, str], out: Path) -> Path:
    """Write index.html, which opens without a network; `plots` are SVG texts by name."""
    first = rows[0].result
    where = f"{first.link}; {usable_cores()} cores; {first.steps} steps"
    figures = "\n".join(figure(name, plots[name]) for name in CAPTIONS)
    page = out / "index.html"
    page.write_text(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gradsieve demo</title>
<style>{STYLE}</style>
</head>
<body>
<h1>gradsieve demo</h1>
<p>The MNIST network of 3.3 million parameters, trained by data parallelism over a slow link:
{html.escape(where)}. {html.escape(summary(rows))}</p>
<div class="scroll">{html_table(rows)}</div>
<p>The limit is lock-step: no gradient travels, one 4-byte all-reduce a step keeps the ranks
together. It is measured in every run, in a step after every fifth of the method's own. Bytes are
those of the network interface's counter, headers included.</p>
{figures}
</body>
</html>
"""
    )
    return page


def figure(name: str, svg: str) -> str:
    title, caption = CAPTIONS[name]
    return (
        f"<h2>{html.escape(title)}</h2>\n<figure><div>{svg}</div>\n"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def html_table(rows: list[Row]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def summary(rows: list[Row]) -> str:
    """Sentences written from the figures."""
    plain = next(r for r in rows if r.method.exchanges and not r.method.sieved)
    sentences = [f"Plain DDP takes {plain.result.ratio:.2f} times the limit's step."]
    for row in rows:
        if not row.method.sieved:
            continue
        fewer = plain.result.bytes_per_step / row.result.bytes_per_step
        gain = 100 * ((row.result.metric or 0.0) - (plain.result.metric or 0.0))
        sentences.append(
            f"{row.method.title[0].upper()}{row.method.title[1:]}: "
            f"{row.result.ratio:.2f} times the limit, {fewer:.0f} times fewer bytes, "
            f"{gain:+.1f} points of test accuracy."
        )
    return " ".join(sentences)
