"""The exchange of one bucket alone, with no computation beside it, on more and more ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from gradsieve.exchange.topology_names import Exchange
from gradsieve.lab.link import UNSHAPED, open_link
from gradsieve.lab.runs.order import ask_ranks
from gradsieve.lab.tables import table_of
from gradsieve.runtime.threads import usable_cores

REPEATS, WARM_UP = 5, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeOrder:
    """What each rank of the benchmark has to do."""

    exchange: Exchange
    ranks: int
    numel: int
    density: float
    interface: str
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRow:
    """Medians over the repeats, as rank 0 measured them."""

    exchange: str
    link: str
    ranks: int
    numel: int
    density: float
    seconds: float
    """The time from a bucket of gradients to their average."""
    transfer_seconds: float
    """The part of that time in which frames were under way."""
    frame_bytes: float
    """The size of all frames that the rank made, those of sums included."""
    sent_bytes: float
    """What the interface's counter saw; on bare loopback, a rank's share."""


def bench_exchange(
    exchanges: Sequence[Exchange],
    ranks: Sequence[int],
    link: str,
    *,
    numel: int,
    density: float,
    out: Path,
    begin: Callable[[str], None] = lambda what: None,
) -> list[ExchangeRow]:
    """Measure a row for each topology and number of ranks.

    Raises:
        ValueError: `link` is no link.
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
    """Return the table of one link's rows."""
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
