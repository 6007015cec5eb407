"""gradsieve bench rate: quality against bits."""

from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradsieve.lab.console import (
    console,
    fail,
    log,
    require_data,
    require_outputs,
    working,
    write_json,
)
from gradsieve.lab.options import Json

if TYPE_CHECKING:
    from gradsieve.lab.bench.rate.play import Setting
    from gradsieve.lab.bench.rate.runs import RunFile

STEPS_A_LINE = 100
"""Steps between two lines of progress, where no terminal shows a line that changes."""


def bench_rate_command(
    workload: Annotated[
        str | None,
        typer.Option(
            help="mnist_cnn, mlp, gpt or gpt-small, perhaps with :optimizer=muon.",
            show_default="gpt-small for training, all for showing",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="dense, fp16, 8-bit, powersgd:4, topk:0.01, sieve:density=0.01, "
            "local:every=10,sigma=2; repeat it.",
            show_default="none: only show the file",
        ),
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option("--lr", min=0, help="Repeat it.", show_default="the workload's own"),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Of weights, data order and dropout; repeat it.", show_default="0"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Of each run.", show_default="300 for training, all for showing"),
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Ranks, played one after the other in one process.")
    ] = 2,
    runs: Annotated[
        Path, typer.Option(help="Finished runs are appended to this file, none is repeated.")
    ] = Path("rate.jsonl"),
    plot: Annotated[
        Path | None, typer.Option(help="Draw quality against bits to this .png or .svg.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Quality against bits: train with each method, at each learning rate, from each seed.

    Without --method nothing is trained. What the file of runs holds is printed and drawn, of the
    workload and with as many steps as were asked for.
    """
    require_outputs(json_file, runs, plot=plot, out=runs.parent)
    from gradsieve.lab.bench.rate.picture import draw
    from gradsieve.lab.bench.rate.play import Setting
    from gradsieve.lab.bench.rate.rows import summarize
    from gradsieve.lab.bench.rate.runs import RunFile
    from gradsieve.lab.bench.rate.tables import rate_tables
    from gradsieve.lab.methods.table import require_playable
    from gradsieve.lab.workloads.workload import load_workload

    file = RunFile(runs)
    try:
        trained = load_workload(workload or "gpt-small")
        if method:
            require_data(trained.name)
        for name in method or []:
            require_playable(name, trained)
        rates = learning_rate or [trained.learning_rate]
        for name, rate, number in product(method or [], rates, seed or [0]):
            setting = Setting(
                workload=trained.name,
                method=name,
                learning_rate=rate,
                seed=number,
                steps=steps or 300,
                ranks=ranks,
            )
            if file.find(setting) is None:
                play_once(file, setting)
        rows = [
            row
            for row in summarize(file)
            if (workload is None or row.workload == trained.name)
            and row.steps == (steps or row.steps)
        ]
    except ValueError as error:
        fail(str(error))
    if not rows:
        fail(
            f"{runs} holds no runs of what was asked for; train some with --method, or name with "
            "--runs a file that holds them"
        )
    for table in rate_tables(rows):
        console.print(table)
    if plot is not None:
        draw(rows, plot)
    write_json(json_file, [asdict(row) for row in rows])


def play_once(file: "RunFile", setting: "Setting") -> None:
    """Play a run and append it, unless another process is playing it."""
    from gradsieve.lab.bench.rate.play import play

    name = f"{setting.method} at {setting.learning_rate:g}, seed {setting.seed}"
    with file.claim(setting) as is_mine:
        # It may have been finished since it was looked for.
        if not is_mine or file.find(setting) is not None:
            log(f"{name}: played by another process")
            return
        with working(f"{name} ...") as tell:
            run = play(setting, progress(tell, setting.method, setting.steps))
        file.append(run)
    console.print(f"{name}: {run.quality:.4f}", style="dim")


def progress(tell: Callable[[str], None], name: str, steps: int) -> Callable[[int, float], None]:
    every = 1 if console.is_terminal else STEPS_A_LINE

    def after_step(step: int, loss: float) -> None:
        if step % every == 0:
            tell(f"{name}: {step} of {steps}, loss {loss:.3f}")

    return after_step
