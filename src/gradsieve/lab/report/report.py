"""From the records in a directory to a page and its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsieve.lab.charts import write_chart
from gradsieve.lab.report.distribution import drawn
from gradsieve.lab.report.figure import STATIC_WIDTH, Figure, slug
from gradsieve.lab.report.figures import (
    DRAWN_LINES,
    LAYER_LINES,
    LAYERS_AT_ONCE,
    layer_figure,
    line_figure,
    metric_figure,
    overview_figure,
    ratio_figure,
    time_figure,
)
from gradsieve.lab.report.histogram_figure import histogram_figure
from gradsieve.lab.report.page import Section, Table, page_of
from gradsieve.lab.report.printable import printable
from gradsieve.lab.report.series import METRIC, Row, grouped, layer_rows, metrics_of, step_rows
from gradsieve.lab.report.source import Rows, Run, Source
from gradsieve.lab.report.summary import sentences, stage_rows, summary_table
from gradsieve.recording.files import Line

PAGE = "index.html"
RATIO_KEYS = frozenset({"method", "link", "workload", "ratio"})
TABLE_ROWS = 200
"""The most rows of a benchmark's table on a page."""


def write_report(source: Source, out: Path, title: str | None = None) -> Path:
    """Write the page, and each figure as PNG and SVG beside it; return the page's path.

    Raises:
        OSError: a file cannot be written.
    """
    groups = grouped(source.runs)
    shapes = drawn(groups)
    summary = Section(
        paragraphs=sentences(groups) or benchmark_in_words(source.tables),
        tables={"Summary": summary_table(groups)} if groups else {},
    )
    sections = [summary]
    if groups:
        histogram = [histogram_figure(shapes)] if shapes else []
        sections.append(Section(figures=[*training_figures(groups, steps_of(groups)), *histogram]))
    sections += [benchmark(rows) for rows in source.tables]
    return write_page(title or printable(source.directory.resolve().name), sections, shapes, out)


def write_page(
    title: str, sections: Sequence[Section], shapes: Mapping[str, Any], out: Path
) -> Path:
    """Write the page and its figures; it returns and raises as `write_report`."""
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    page.write_text(page_of(title, sections, shapes), encoding="utf-8")
    for section in sections:
        for figure in section.figures:
            write_files(figure, out)
    return page


def benchmark(rows: Rows) -> Section:
    ratios = [row for row in rows.rows if row.keys() >= RATIO_KEYS]
    placed = [row | {"where": f"{row['workload']}, {row['link']}"} for row in ratios]
    count = len(rows.rows)
    name = f"{count} rows" if count <= TABLE_ROWS else f"The first {TABLE_ROWS} of {count} rows"
    return Section(
        title=rows.name,
        long_tables={name: table_of_rows(rows.rows)},
        figures=[ratio_figure(placed, rows.name)] if placed else [],
    )


@dataclass(frozen=True, slots=True)
class Steps:
    """What the figures over the steps are drawn from."""

    metrics: dict[str, str]
    """The names of what training has logged, by column of the rows."""
    rows: list[Row]

    def column(self, metric: str) -> str:
        return next(column for column, name in self.metrics.items() if name == metric)


def steps_of(groups: Mapping[str, Sequence[Run]]) -> Steps:
    names = metrics_of(run for runs in groups.values() for run in runs)
    columns = {METRIC.format(n): name for n, name in enumerate(names)}
    return Steps(columns, step_rows(groups, names))


def training_figures(groups: Mapping[str, Sequence[Run]], steps: Steps) -> list[Figure]:
    runs = [run for group in groups.values() for run in group]
    rows, layers = steps.rows, layer_rows(groups)
    has = {name for row in rows for name, value in row.items() if value is not None}
    metrics = {column: name for column, name in steps.metrics.items() if column in has}
    strip = metrics | {field: DRAWN_LINES[field][1] for field in DRAWN_LINES if field in has}
    figures = []
    if strip:
        figures.append(overview_figure(rows, *next(iter(strip.items()))))
    names = figure_names(metrics)
    figures += [
        metric_figure(rows, metric, column, name=names[column])
        for column, metric in metrics.items()
    ]
    stages = stage_rows(groups)
    if stages:
        figures.append(time_figure(stages))
    figures += [line_figure(rows, field) for field in DRAWN_LINES if field in has]
    largest = list(dict.fromkeys(name for run in runs for name in run.pruned))[:LAYERS_AT_ONCE]
    figures += [
        layer_figure(layers, field, largest)
        for field in LAYER_LINES
        if any(row[field] is not None for row in layers)
    ]
    return figures


def figure_names(metrics: Mapping[str, str]) -> dict[str, str]:
    """Return a different file name for each column, made from the name of its metric."""
    names: dict[str, str] = {}
    for column, metric in metrics.items():
        name = f"training-{slug(metric)}"
        names[column] = f"{name}-{column}" if name in names.values() else name
    return names


def table_of_rows(rows: Sequence[Line]) -> Table:
    headings = list(dict.fromkeys(name for row in rows for name in row))
    return headings, [[cell(row.get(name)) for name in headings] for row in rows[:TABLE_ROWS]]


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def benchmark_in_words(tables: Sequence[Rows]) -> list[str]:
    count = sum(len(rows.rows) for rows in tables)
    return [f"{count} rows of {', '.join(rows.name for rows in tables)}."]


def write_files(figure: Figure, out: Path) -> None:
    """Write the figure as the page shows it at first."""
    chart = figure.default.properties(width=STATIC_WIDTH)
    chart = chart.configure_view(stroke=None).configure_legend(
        orient="top", labelLimit=0, columns=4
    )
    specification = chart.to_dict() | {"datasets": {n: list(r) for n, r in figure.data.items()}}
    for ending in ("png", "svg"):
        write_chart(specification, out / f"{figure.name}.{ending}")
