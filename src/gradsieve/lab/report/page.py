"""One self-contained HTML page, which opens without a network."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import vl_convert

from gradsieve.lab.report.distribution import KINDS, WHOLE_MODEL
from gradsieve.lab.report.figure import Figure
from gradsieve.lab.report.figures import ALL_LAYERS
from gradsieve.lab.report.series import columns

Table = tuple[Sequence[str], Sequence[Sequence[str]]]

FILLED_BY_SCRIPT = ("bars", "marks", "words")
"""The data of the histogram, which the page computes from shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page with its words, figures and tables."""

    title: str = ""
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    long_tables: Mapping[str, Table] = field(default_factory=dict)
    """Tables that are closed until a reader opens them."""


def page_of(title: str, sections: Sequence[Section], shapes: Mapping[str, Any]) -> str:
    """Return the HTML of a page. Its controls stand below the first section.

    `shapes` as `distribution.drawn` gives them.
    """
    figures = [figure for section in sections for figure in section.figures]
    data = named_data(figures)
    first, *others = map(section_html, sections)
    body = [f"<h1>{html.escape(title)}</h1>", first, *controls(figures, data, shapes), *others]
    report = {
        "figures": {
            figure.name: {
                "charts": {scale: chart.to_dict() for scale, chart in figure.charts.items()},
                "data": list(figure.data),
            }
            for figure in figures
        },
        "data": {name: columns(rows) for name, rows in data.items()},
        "shapes": shapes,
        "wholeModel": WHOLE_MODEL,
        "allLayers": ALL_LAYERS,
        "extent": extent(data),
        "choice": first_choice(data, shapes),
    }
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{resource("page.css")}</style>
</head>
<body>
{chr(10).join(body)}
<script type="application/json" id="report">{json_in_html(report)}</script>
<script type="module">{vega()}
{resource("page.js")}</script>
</body>
</html>
"""


def vega() -> str:
    """Return Vega-Lite's runtime as one script that defines `vegaEmbed`."""
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # Its stub lacks a default.
    return script


def resource(name: str) -> str:
    return files("gradsieve.lab.report").joinpath(name).read_text(encoding="utf-8")


def json_in_html(content: object) -> str:
    """Return JSON in which no text can end the element that holds it, or begin another."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c")


def named_data(figures: Sequence[Figure]) -> dict[str, Sequence[Any]]:
    """Return the rows of all figures by name.

    Raises:
        ValueError: two figures call different rows by one name.
    """
    data: dict[str, Sequence[Any]] = {}
    for figure in figures:
        for name, rows in figure.data.items():
            if name in FILLED_BY_SCRIPT:
                continue
            if data.setdefault(name, rows) is not rows:
                raise ValueError(f"figure {figure.name} has other rows that are called {name}")
    return data


def extent(data: Mapping[str, Sequence[Any]]) -> list[int]:
    steps = [row["step"] for row in data.get("steps", ())]
    return [min(steps, default=0), max(1, *steps) if steps else 1]


def words(rows: Sequence[Any], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def first_choice(data: Mapping[str, Sequence[Any]], shapes: Mapping[str, Any]) -> dict[str, Any]:
    first, last = extent(data)
    pruned = words(data.get("layers", ()), "run")
    run = next(iter([*(run for run in pruned if run in shapes), *pruned, *shapes]), None)
    kinds = shapes.get(run, {}) if run else {}
    kind = next((kind for kind in KINDS if kind in kinds), None)
    chosen = {"run": run, "kind": kind, "layer": ALL_LAYERS, "first": first, "last": last}
    return {name: value for name, value in chosen.items() if value is not None}


def controls(
    figures: Sequence[Figure], data: Mapping[str, Sequence[Any]], shapes: Mapping[str, Any]
) -> list[str]:
    wanted = {control for figure in figures for control in figure.controls}
    parts = []
    runs = list(dict.fromkeys([*shapes, *words(data.get("layers", ()), "run")]))
    if "run" in wanted and len(runs) > 1:
        parts.append(select("run", "run", runs, first_choice(data, shapes).get("run")))
    if "layer" in wanted:
        histogram_layers = [
            layer for kinds in shapes.values() for layers in kinds.values() for layer in layers
        ]
        layers = dict.fromkeys([*words(data.get("layers", ()), "layer"), *histogram_layers])
        layers.pop(WHOLE_MODEL, None)
        parts.append(select("layer", "layer", [ALL_LAYERS, *layers]))
    if "kind" in wanted:
        present = {kind for kinds in shapes.values() for kind in kinds}
        parts.append(select("kind", "histogram of", [kind for kind in KINDS if kind in present]))
    if any(len(figure.charts) > 1 for figure in figures):
        parts.append(axis_choice())
    if "step" in wanted:
        parts.append(step_choice(extent(data)))
    parts.append('<button type="button" id="theme">dark or light</button>')
    opened = '<div id="controls" role="group" aria-label="Choices for all figures">'
    return [opened, *parts, "</div>"]


def select(name: str, label: str, options: Sequence[str], chosen: str | None = None) -> str:
    made = "".join(
        f"<option{' selected' if option == chosen else ''}>{html.escape(option)}</option>"
        for option in options
    )
    return f'<label>{label} <select id="{name}">{made}</select></label>'


def axis_choice() -> str:
    radios = "".join(
        f'<label><input type="radio" name="scale" value="{value}"{checked}>{value}</label>'
        for value, checked in (("default", " checked"), ("linear", ""), ("log", ""))
    )
    return f"<fieldset><legend>axes</legend>{radios}</fieldset>"


def step_choice(steps: Sequence[int]) -> str:
    first, last = steps
    limits = f'type="number" min="{first}" max="{last}"'
    return (
        f'<label>steps <input id="from-step" {limits} value="{first}"></label>'
        f'<label>to <input id="to-step" {limits} value="{last}"></label>'
        '<button type="button" id="all-steps">all steps</button>'
    )


def section_html(section: Section) -> str:
    title = f"<h2>{html.escape(section.title)}</h2>" if section.title else ""
    parts = [
        title,
        *(f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs),
        *map(figure_html, section.figures),
        *(table_html(table, name) for name, table in section.tables.items()),
        *(
            f"<details><summary>{html.escape(name)}</summary>{table_html(table, name)}</details>"
            for name, table in section.long_tables.items()
        ),
    ]
    return f"<section>{''.join(parts)}</section>"


def figure_html(figure: Figure) -> str:
    slider = SLIDER if figure.name == "histogram" else ""
    return (
        f"<figure><h3>{html.escape(figure.title)}</h3>{slider}"
        f'<div class="chart" id="chart-{figure.name}"></div>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
    )


SLIDER = """<div id="histogram-step"><label for="sampled-step">sampled step</label>
<input type="range" id="sampled-step" min="0" value="0" step="1">
<output id="sampled-words" for="sampled-step"></output></div>"""


def table_html(table: Table, label: str) -> str:
    headings, rows = table
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        + "</tr>"
        for first, *others in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f"<table><caption>{html.escape(label)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
