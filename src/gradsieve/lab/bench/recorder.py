"""How much of a training step recording takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gradsieve.lab.console import (
    console,
    measuring,
    require_data,
    require_outputs,
    working,
    write_json,
)
from gradsieve.lab.options import Json
from gradsieve.lab.tables import table_of
from gradsieve.runtime.threads import usable_cores

RANKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderOrder:
    """What each rank of the benchmark has to do."""

    workload: str
    steps: int
    records: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderRow:
    """Figures of the slower rank: `step` in seconds by the clock, the others of the processor."""

    workload: str
    parameters: int
    layers: int
    step: float
    """The step without recording."""
    scalars: float
    """What recording adds to a step without histograms."""
    histograms: float
    """What recording adds to a step with histograms, in all."""
    record_bytes: int
    """Bytes on disk for a step."""
    histogram_bytes: int
    """Bytes on disk for a step with histograms."""


def bench_recorder(workloads: Sequence[str], steps: int, out: Path) -> list[RecorderRow]:
    """Measure a row for each workload.

    Raises:
        RunError: a rank failed.
        ValueError: there is no such workload.
    """
    from gradsieve.lab.link import UNSHAPED, open_link
    from gradsieve.lab.runs.order import ask_ranks

    rows = []
    for workload in workloads:
        directory = out / workload
        order = RecorderOrder(workload=workload, steps=steps, records=str(directory / "records"))
        with open_link(RANKS, UNSHAPED) as loopback:
            module = "gradsieve.lab.bench.recorder_rank"
            rows.append(RecorderRow(**ask_ranks(module, order, directory, RANKS, loopback)))
    return rows


def recorder_table(rows: Sequence[RecorderRow]) -> Table:
    table = table_of(
        (
            "workload",
            "million",
            "layers",
            "step",
            "scalars",
            "share",
            "histograms",
            "record",
            "sample",
        ),
        title=f"Recording, {RANKS} ranks on loopback, {usable_cores()} cores",
        words=("workload",),
        caption=(
            "million: parameters; milliseconds of the slower rank: of a step, and processor time "
            "for its scalars and its histograms; share: of scalars in the step; kilobytes on disk: "
            "a step's record, a sample of histograms"
        ),
    )
    for row in rows:
        table.add_row(
            row.workload,
            f"{row.parameters / 1e6:.1f}",
            str(row.layers),
            f"{1000 * row.step:.1f}",
            f"{1000 * row.scalars:.2f}",
            f"{row.scalars / row.step:.2%}",
            f"{1000 * row.histograms:.1f}",
            f"{row.record_bytes / 1000:.1f}",
            f"{row.histogram_bytes / 1000:.1f}",
        )
    return table


def bench_recorder_command(
    workload: Annotated[
        list[str] | None,
        typer.Option(help="Train these; repeat the option.", show_default="mnist_cnn, mlp and gpt"),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="Training steps of each.")] = 40,
    out: Annotated[Path, typer.Option(help="Directory for records and logs.")] = Path(
        "build/bench-recorder"
    ),
    json_file: Json = None,
) -> None:
    """Milliseconds that a Recorder takes of a step, with scalars and with histograms."""
    require_outputs(json_file, out=out)
    workloads = workload or ["mnist_cnn", "mlp", "gpt"]
    with measuring():
        require_data(*workloads)
        with working("training ..."):
            rows = bench_recorder(workloads, steps, out)
    console.print(recorder_table(rows))
    write_json(json_file, [asdict(row) for row in rows])
