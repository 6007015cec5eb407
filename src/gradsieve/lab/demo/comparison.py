"""The table that the demo ends with."""

from dataclasses import dataclass

from rich.table import Table

from gradsieve.lab.demo.shown import Shown
from gradsieve.lab.runs.config import RunResult
from gradsieve.lab.tables import table_of
from gradsieve.runtime.threads import usable_cores

HEADINGS = (
    "method",
    "step, ms",
    "× the limit",
    "MB a step",
    "bits a parameter",
    "test accuracy",
)


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one method."""

    method: Shown
    result: RunResult


def cells(row: Row) -> list[str]:
    result = row.result
    return [
        row.method.title,
        f"{result.step_seconds * 1000:.1f}",
        f"{result.ratio:.2f}",
        f"{result.bytes_per_step / 1e6:.3f}",
        f"{result.bits_per_parameter:.2f}",
        "–" if result.metric is None else f"{result.metric:.4f}",
    ]


def rich_table(rows: list[Row]) -> Table:
    first = rows[0].result
    title = f"{first.steps} steps, {first.link}, {usable_cores()} cores"
    table = table_of(HEADINGS, title=title, words=("method",))
    for row in rows:
        table.add_row(*cells(row))
    return table
