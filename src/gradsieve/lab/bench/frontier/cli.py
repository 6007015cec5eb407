"""gradsieve bench frontier: a named set of runs on many cores, and one picture."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gradsieve.lab.console import console, fail, log, require_data, require_outputs, write_json
from gradsieve.lab.options import Json
from gradsieve.runtime.threads import usable_cores

if TYPE_CHECKING:
    from gradsieve.lab.bench.frontier.conductor import Outcome
    from gradsieve.lab.bench.rate.play import PlayedRun, Setting
    from gradsieve.lab.bench.rate.runs import RunFile

LEAST_BITS = 0.003
"""The left end of the picture."""


def bench_frontier_command(
    sets: Annotated[
        list[str] | None,
        typer.Argument(help="Sets to play, in one picture.", show_default="none: list the sets"),
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Runs at once, one a core.", show_default="all")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Repeat it.", show_default="the set's own")
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Return at once, and go on in the background.")
    ] = False,
    runs: Annotated[
        Path, typer.Option(help="Finished runs are appended to this file, none is repeated.")
    ] = Path("frontier.jsonl"),
    plot: Annotated[
        Path | None, typer.Option(help="Draw quality against bits to this .png or .svg.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Quality per bit: gradsieve, its peers and dense training, by a named set of runs.

    Each run is a process on a core of its own. A run that is killed is lost alone, and the same
    command goes on with what is left. Several such commands may share a file of runs.
    """
    require_outputs(json_file, runs, plot=plot, out=runs.parent)
    from gradsieve.lab.bench.frontier.progress import set_rows, sets_table
    from gradsieve.lab.bench.frontier.sets import SETS, find_sets, settings_of
    from gradsieve.lab.bench.rate.runs import RunFile

    used, file, seeds = cores or usable_cores(), RunFile(runs), seed or []
    if used > usable_cores():
        fail(f"--cores {used} is more than the {usable_cores()} that there are")
    try:
        chosen = find_sets(sets or [])
        finished = list(file)
        if not chosen:
            if background or plot is not None:
                fail(f"name the sets to play: {', '.join(SETS)}")
            rows = set_rows(SETS.values(), finished, seeds, used)
            console.print(sets_table(rows, used))
            write_json(json_file, [asdict(row) for row in rows])
            return
        settings = settings_of(chosen, seeds)
        require_data(*sorted({setting.workload for setting in settings}))
    except ValueError as error:
        fail(str(error))
    if background:
        given = [("--cores", used), ("--runs", runs), ("--plot", plot), ("--json", json_file)]
        given += [("--seed", number) for number in seeds]
        words = [str(word) for option in given if option[1] is not None for word in option]
        detach(runs, [*(sets or []), *words])
        return
    outcome = play_all(settings, file, used)
    show(settings, file, plot, json_file)
    tell(outcome)


def play_all(settings: "Sequence[Setting]", file: "RunFile", cores: int) -> "Outcome":
    """Play what is left, with a line for each run that is finished."""
    from gradsieve.lab.bench.frontier.conductor import Conductor
    from gradsieve.lab.bench.frontier.progress import Speeds, hours_of, unfinished

    def told(run: "PlayedRun") -> None:
        known = list(file)
        left = unfinished(settings, known)
        hours = hours_of(Speeds(known).hours(left, cores))
        log(
            f"{len(settings) - len(left)} of {len(settings)}: {run.workload}, {run.method} at "
            f"{run.learning_rate:g}, seed {run.seed}: {run.quality:.4f} at "
            f"{run.bits_per_parameter:.4f} bits, {run.seconds:.0f} s; about {hours} hours left"
        )

    with stopped_by_signals():
        try:
            return Conductor(file, cores, told).play(unfinished(settings, file))
        except KeyboardInterrupt:
            fail("stopped; finished runs stay, and the same command goes on", status=130)
        except OSError as error:
            fail(f"cannot start runs or use {file.path}: {error}")


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let the signal of `kill` end the block as Ctrl-C does, so that its processes are ended."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show(
    settings: "Sequence[Setting]", file: "RunFile", plot: Path | None, json_file: Path | None
) -> None:
    """Print and draw the runs of the sets that are finished."""
    from gradsieve.lab.bench.rate.picture import draw
    from gradsieve.lab.bench.rate.rows import summarize
    from gradsieve.lab.bench.rate.tables import rate_tables

    wanted = {setting.key for setting in settings}
    rows = summarize(run for run in file if run.key in wanted)
    for table in rate_tables(rows):
        console.print(table)
    if plot is not None and rows:
        draw(rows, plot, together=True, least_bits=LEAST_BITS)
    write_json(json_file, [asdict(row) for row in rows])


def tell(outcome: "Outcome") -> None:
    """Say what is missing; end the command with status 1 where a run failed."""
    if outcome.elsewhere:
        log(f"{len(outcome.elsewhere)} runs are played by another command")
    if outcome.failed:
        lines = [
            f"{setting.workload}, {setting.method} at {setting.learning_rate:g}, seed "
            f"{setting.seed}: {words}"
            for setting, words in outcome.failed
        ]
        fail("\n  ".join([f"{len(lines)} runs failed:", *lines]))


def detach(runs: Path, arguments: list[str]) -> None:
    """Start this command with other arguments in a session of its own, and say how to find it."""
    from gradsieve.lab.bench.rate.runs import beside

    log_file = beside(runs, ".log")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gradsieve", "bench", "frontier", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"COLUMNS": os.environ.get("COLUMNS", "120")},
        )
    console.print(f"Process {process.pid} plays in the background.", highlight=False)
    for what, command in (
        ("look", f"tail -f {log_file}"),
        ("count", f"gradsieve bench frontier --runs {runs}"),
        ("stop", f"kill {process.pid}"),
    ):
        console.print(f"  {what + ':':<7}{command}", highlight=False, soft_wrap=True)
