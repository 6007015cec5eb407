"""Tables of quality and bits."""

from collections.abc import Iterable

from rich.table import Table

from gradsieve.lab.bench.rate.rows import RateRow, grouped
from gradsieve.lab.tables import table_of
from gradsieve.lab.workloads.workload import load_workload

CAPTION = "rate: of learning, * the method's best; spread: of the seeds"
ENTROPY_CAPTION = "in brackets: bits, were positions at their entropy"


def rate_tables(rows: Iterable[RateRow]) -> list[Table]:
    """Return a table for each workload, number of steps and of ranks."""
    tables = []
    for (workload, steps, ranks), compared in grouped(rows, lambda row: row.workload).items():
        metric = load_workload(workload).metric_name
        has_positions = any(row.bits_at_entropy is not None for row in compared)
        table = table_of(
            ("method", "rate", "seeds", "bits a parameter", "quality", "spread"),
            title=f"{workload}: {metric}, {steps} steps, {ranks} ranks",
            caption="; ".join([CAPTION, *([ENTROPY_CAPTION] if has_positions else [])]),
            words=("method",),
        )
        # A method's options may be long: they are folded, numbers are not.
        for number, column in enumerate(table.columns):
            column.no_wrap, column.overflow = number > 0, "fold"
        for row in compared:
            table.add_row(
                row.method.replace(",", ", "),
                f"{row.learning_rate:g}{'*' if row.best else ' '}",
                str(row.seeds),
                bits_in_words(row.bits_per_parameter, row.bits_at_entropy),
                f"{row.quality:.4f}",
                f"{row.lowest:.4f}–{row.highest:.4f}" if row.seeds > 1 else "",
            )
        tables.append(table)
    return tables


def bits_in_words(bits: float, at_entropy: float | None) -> str:
    brackets = "" if at_entropy is None else f" ({rounded(at_entropy)})"
    return rounded(bits) + brackets


def rounded(bits: float) -> str:
    return f"{bits:.3f}" if bits >= 0.1 else f"{bits:.4f}"
