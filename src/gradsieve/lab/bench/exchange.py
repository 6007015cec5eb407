"""The exchange of one bucket alone, with no computation beside it, on more and more ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from gradsieve.cores import usable_cores
from gradsieve.lab.link import UNSHAPED, open_link
from gradsieve.lab.runs.order import ask_ranks
from gradsieve.lab.tables import table_of
from gradsieve.pieces import Way

REPEATS, WARM_UP = 5, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeOrder:
    """What each rank is to do."""

    exchange: Way
    ranks: int
    numel: int
    density: float
    interface: str
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRow:
    """Medians over the repeats, of rank 0."""

    exchange: str
    link: str
    ranks: int
    numel: int
    density: float
    seconds: float
    """From a bucket of gradients to their average."""
    transfer_seconds: float
    """Of that, while frames were under way."""
    frame_bytes: float
    """That the rank has made, of sums as well."""
    sent_bytes: float
    """By the interface's counter; on bare loopback a rank's share."""


def bench_exchange(
    exchanges: Sequence[Way],
    ranks: Sequence[int],
    link: str,
    *,
    numel: int,
    density: float,
    out: Path,
    begin: Callable[[str], None] = lambda what: None,
) -> list[ExchangeRow]:
    """A row for each way and number of ranks.

    Raises:
        ValueError: the link is written otherwise.
        RunError: a rank failed.
    """
    name = "loopback" if link == UNSHAPED else link
    rows = []
    for count in ranks:
        with open_link(count, link) as opened:
            for exchange in exchanges:
                begin(f"{name}, {count} ranks: {exchange} ...")
                directory = out / f"{name}-{exchange}-{count}"
                order = ExchangeOrder(
                    exchange=exchange,
                    ranks=count,
                    numel=numel,
                    density=density,
                    interface=opened.interface,
                    link=opened.description,
                )
                module = "gradsieve.lab.bench.exchange_rank"
                rows.append(ExchangeRow(**ask_ranks(module, order, directory, count, opened)))
    return rows


def exchange_table(rows: Sequence[ExchangeRow]) -> Table:
    """Of one link."""
    first = rows[0]
    link, _, why = first.link.removeprefix(f"{first.ranks} ranks, ").partition(":")
    cores = usable_cores()
    table = table_of(
        ("exchange", "ranks", "in all, ms", "under way, ms", "frames, kB", "sent, kB"),
        title=f"{first.numel:,} elements, {first.density:.2%} sent; {link}, {cores} cores",
        words=("exchange",),
        caption=why.strip() or None,
    )
    for row in rows:
        table.add_row(
            row.exchange,
            str(row.ranks),
            f"{1000 * row.seconds:.0f}",
            f"{1000 * row.transfer_seconds:.1f}",
            f"{row.frame_bytes / 1000:.0f}",
            f"{row.sent_bytes / 1000:.0f}",
        )
    return table
