"""The time of a training step of real ranks over an emulated link, by each method."""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from gradsieve.lab.link import Link, open_link
from gradsieve.lab.methods.table import read_distributed
from gradsieve.lab.runs.config import WARMUP_STEPS, RunConfig, RunResult
from gradsieve.lab.runs.launch import launch
from gradsieve.lab.tables import table_of
from gradsieve.lab.workloads.workload import load_workload
from gradsieve.runtime.threads import usable_cores


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow(RunResult):
    """Medians over the rounds; the metric is that of the first round."""

    rounds: int
    lowest_ratio: float
    highest_ratio: float


def bench_step(
    workload: str,
    link: str,
    methods: Sequence[str],
    *,
    ranks: int,
    ranks_per_node: int = 1,
    steps: int,
    rounds: int,
    seed: int,
    out: Path,
    begin: Callable[[RunConfig], None] = lambda config: None,
) -> list[StepRow]:
    """Measure a row for each method; the methods take turns, round after round.

    Args:
        link: as for `open_link`, between nodes.
        out: where each run writes its configuration, records and logs.
        begin: is called with each run before it starts.

    Raises:
        ValueError: there is no such workload, or a number is out of range.
        RunError: a rank of a run failed.
    """
    nodes = nodes_of(ranks, ranks_per_node)
    for method in methods:
        read_distributed(method).require_nodes(ranks, ranks_per_node)
        require_phase(method, steps - WARMUP_STEPS)
    learning_rate = load_workload(workload).learning_rate
    results: list[RunResult] = []
    with open_link(nodes, link) as opened:
        words = opened.description
        if ranks_per_node > 1:
            words = f"{ranks} ranks, {ranks_per_node} per node, {opened.words}"
        for number in range(rounds):
            for method in methods:
                config = RunConfig(
                    workload=workload,
                    method=method,
                    ranks=ranks,
                    steps=steps,
                    ranks_per_node=ranks_per_node,
                    directory=str(
                        out / directory_name(workload, opened, ranks_per_node, method, number)
                    ),
                    interface=opened.interface,
                    link=words,
                    learning_rate=learning_rate,
                    seed=seed,
                    title=f"{method}, {workload}, {words}",
                )
                begin(config)
                results.append(launch(config, opened))
    return [median_of([r for r in results if r.method == method]) for method in methods]


def nodes_of(ranks: int, ranks_per_node: int) -> int:
    """Return the number of nodes. Raises ValueError where the ranks do not fall into nodes."""
    if ranks % ranks_per_node:
        raise ValueError(
            f"{ranks} ranks do not fall into nodes of {ranks_per_node}: the number of ranks must "
            "be a multiple of the ranks per node"
        )
    return ranks // ranks_per_node


def require_phase(method: str, steps: int) -> None:
    """Raise ValueError where so many measured steps are no whole phase."""
    phase = read_distributed(method).phase
    if steps < phase:
        raise ValueError(
            f"{method} is measured over whole phases of {phase} steps, and {steps} would be "
            "measured: ask for more steps"
        )


def directory_name(workload: str, link: Link, ranks_per_node: int, method: str, number: int) -> str:
    rate = f"{link.rate}bit-{link.round_trip:g}s" if link.rate else link.interface
    nodes = f"{link.ranks}x{ranks_per_node}" if ranks_per_node > 1 else f"{link.ranks}"
    text = f"{workload}-{rate}-{nodes}-{method}-{number}"
    return re.sub(r"[^\w.=-]+", "_", text)


def median_of(rounds: Sequence[RunResult]) -> StepRow:
    ratios = [result.ratio for result in rounds]
    alone = [result.alone_seconds for result in rounds if result.alone_seconds]
    medians: dict[str, float | None] = {
        field: statistics.median(getattr(result, field) for result in rounds)
        for field in (
            "step_seconds",
            "limit_seconds",
            "ratio",
            "bytes_per_step",
            "bits_per_parameter",
        )
    }
    medians["alone_seconds"] = statistics.median(alone) if alone else None
    return StepRow(
        **(asdict(rounds[0]) | medians),
        rounds=len(rounds),
        lowest_ratio=min(ratios),
        highest_ratio=max(ratios),
    )


def step_table(rows: Iterable[StepRow]) -> Table:
    """Return the table of one workload and link."""
    rows = list(rows)
    first = rows[0]
    cores = usable_cores()
    title = f"{first.workload}, {first.steps} steps, {first.link}, {cores} cores"
    columns = columns_for(rows)
    table = table_of(
        ("method", *columns),
        title=title,
        caption="; ".join(
            [rounds_in_words(first.rounds), *([ALONE_IN_WORDS] if "× alone" in columns else [])]
        ),
        words=("method",),
    )
    # A method's options may be long: they are folded, numbers are not cut.
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for column, cell in zip(table.columns[1:], columns.values(), strict=True):
        column.min_width = max(len(cell(row)) for row in rows)
    for row in rows:
        table.add_row(row.method.replace(",", ", "), *(cell(row) for cell in columns.values()))
    return table


ALONE_IN_WORDS = "alone: local steps beside which nothing is exchanged"


def rounds_in_words(rounds: int) -> str:
    return f"medians of {rounds} rounds; spread: of × lock-step" if rounds > 1 else "one round"


def columns_for(rows: Sequence[StepRow]) -> dict[str, Callable[[StepRow], str]]:
    """Return the headings, each with what makes its cell of a row."""
    columns: dict[str, Callable[[StepRow], str]] = {
        "step, ms": lambda row: f"{row.step_seconds * 1000:.1f}",
        "× lock-step": lambda row: f"{row.ratio:.3f}",
    }
    if rows[0].rounds > 1:
        columns["spread"] = lambda row: f"{row.lowest_ratio:.2f}–{row.highest_ratio:.2f}"
    if any(row.alone_seconds for row in rows):
        columns["× alone"] = lambda row: (
            f"{row.step_seconds / row.alone_seconds:.3f}" if row.alone_seconds else ""
        )
    return columns | {
        "MB a step": lambda row: f"{row.bytes_per_step / 1e6:.3f}",
        "bits": lambda row: f"{row.bits_per_parameter:.3f}",
        rows[0].metric_name: lambda row: "–" if row.metric is None else f"{row.metric:.4f}",
    }
