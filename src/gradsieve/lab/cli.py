"""The gradsieve command."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gradsieve.lab.bench.cli import app as bench
from gradsieve.lab.console import (
    console,
    fail,
    require_data,
    require_drawing,
    require_outputs,
    working,
    write_json,
)
from gradsieve.lab.options import Json, LearningRate, Link, Ranks, Seed
from gradsieve.lab.plan.cli import plan
from gradsieve.runtime.version import __version__

app = typer.Typer(
    help="Threshold-pruned gradients for PyTorch data-parallel training over slow links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
app.command()(plan)


def print_version(asked: bool) -> None:
    if asked:
        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=20, help="Training steps of each method.")] = 180,
    ranks: Ranks = 2,
    link: Link = "1gbit",
    out: Annotated[Path, typer.Option(help="Directory for records, plots and the page.")] = Path(
        "demo"
    ),
    learning_rate: LearningRate = 1e-3,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Train the MNIST network over a slow link: plain DDP, the limit, and three sieves."""
    require_drawing()
    require_outputs(json_file, out=out)
    from gradsieve.lab.demo.demo import WORKLOAD, DemoError, run_demo

    require_data(WORKLOAD)

    try:
        rows = run_demo(
            steps=steps,
            ranks=ranks,
            link=link,
            learning_rate=learning_rate,
            out=out,
            seed=seed,
            console=console,
        )
    except DemoError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; the link is taken down, what was recorded stays", status=130)
    write_json(json_file, [asdict(row.result) for row in rows])


study = typer.Typer(help="Reproduce a study, with its figures.", no_args_is_help=True)
app.add_typer(study, name="study")


@study.command("mnist")
def study_mnist(
    ranks: Ranks = 2,
    steps: Annotated[
        int | None,
        typer.Option(min=20, help="Training steps of each run.", show_default="1000"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of each rule, from other weights.", show_default="3"),
    ] = None,
    link: Link = "1gbit",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for records, figures and the page.",
            show_default="study, or study-quick",
        ),
    ] = None,
    learning_rate: LearningRate = 1e-4,
    quick: Annotated[
        bool, typer.Option("--quick", help="40 steps, one seed, the main rules: some 3 minutes.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Thresholds on the gradients of the MNIST network: every figure of the original study.

    Runs that are finished are not repeated: call it again after an interruption.
    """
    require_drawing()
    from gradsieve.lab.report.summary import summary_rows
    from gradsieve.lab.runs.launch import RunError
    from gradsieve.lab.study.study import run_study
    from gradsieve.lab.study.variants import QUICK_STEPS, Study

    if quick and (steps is not None or seeds is not None):
        fail("--quick has steps and seeds of its own; leave --steps and --seeds out", status=2)
    chosen = Study(
        ranks=ranks,
        steps=QUICK_STEPS if quick else steps or 1000,
        seeds=1 if quick else seeds or 3,
        learning_rate=learning_rate,
        out=out or Path("study-quick" if quick else "study"),
        quick=quick,
    )
    require_outputs(json_file, out=chosen.out)
    try:
        page, source = run_study(chosen, link, console)
    except (RunError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {chosen.out}: {error.strerror}; give --out another directory")
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on with the runs that are missing", status=130)
    write_json(json_file, summary_rows(source))
    console.print(f"Open [bold]{page}[/bold]; every figure lies beside it as .png and .svg.")


@app.command()
def report(
    directory: Annotated[
        Path | None,
        typer.Argument(help="What a demo, study, benchmark or your own training has written."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the page and its figures.", show_default="DIRECTORY/report"
        ),
    ] = None,
    frame: Annotated[
        Path | None, typer.Option(help="Instead: show what this file with a frame holds.")
    ] = None,
    json_file: Json = None,
) -> None:
    """One page that opens offline, and its figures as files, from the records in a directory."""
    if (directory is None) == (frame is None):
        fail("give either a directory with records or --frame FILE", status=2)
    if frame is not None:
        report_frame(frame, json_file)
    elif directory is not None:
        report_directory(directory, out or directory / "report", json_file)


def report_directory(directory: Path, out: Path, json_file: Path | None) -> None:
    from gradsieve.recording.files import RecordsError

    require_drawing()
    from gradsieve.lab.report.report import write_report
    from gradsieve.lab.report.source import read_source
    from gradsieve.lab.report.summary import summary_rows

    # `read_source` refuses what is no directory.
    require_outputs(json_file, out=out if directory.is_dir() else None)
    try:
        source = read_source(directory)
        with working(f"drawing {directory} ..."):
            page = write_report(source, out)
    except RecordsError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {out}: {error.strerror}; give --out another directory")
    write_json(json_file, summary_rows(source))
    console.print(f"Open [bold]{page}[/bold]; every figure lies beside it as .png and .svg.")


def report_frame(frame: Path, json_file: Path | None) -> None:
    """Print the sections of a frame, and how many bits each part takes."""
    require_outputs(json_file)
    from gradsieve.codec import FrameError
    from gradsieve.lab.report.frame_tables import frame_tables, read_frame

    try:
        found = read_frame(frame)
    except OSError as error:
        fail(f"cannot read {frame}: {error.strerror}")
    except FrameError as error:
        fail(f"{frame} is no frame, or a damaged one: {error}")
    for table in frame_tables(found):
        console.print(table)
    write_json(json_file, asdict(found) | {"bits_per_parameter": found.bits_per_parameter})
