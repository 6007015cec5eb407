"""The gradsieve command."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from gradsieve.bench.cli import app as bench
from gradsieve.console import Json, console, fail, write_json
from gradsieve.plan.cli import plan

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
        console.print(version("gradsieve"), highlight=False)
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
    ranks: Annotated[int, typer.Option(min=2, max=16, help="Processes that train together.")] = 2,
    link: Annotated[
        str, typer.Option(help='Rate of the emulated link, as "1gbit"; "none": bare loopback.')
    ] = "1gbit",
    out: Annotated[Path, typer.Option(help="Directory for records, plots and the page.")] = Path(
        "demo"
    ),
    learning_rate: Annotated[
        float, typer.Option("--lr", min=0, help="Adam's; 1e-4 is the original study's.")
    ] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of weights, data order and dropout.")] = 0,
    json_file: Json = None,
) -> None:
    """Train the MNIST network over a slow link: plain DDP, the limit, and three sieves."""
    from gradsieve.demo.demo import DemoError, run_demo

    try:
        rows = run_demo(
            steps=steps,
            ranks=ranks,
            rate=None if link == "none" else link,
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


@app.command()
def report(
    frame: Annotated[Path, typer.Option(help="A file with the bytes of one frame.")],
    json_file: Json = None,
) -> None:
    """What is in a frame: its sections, and how many bits each part takes."""
    from gradsieve.codec import FrameError
    from gradsieve.report.frame import frame_tables, read_frame

    try:
        found = read_frame(frame)
    except OSError as error:
        fail(f"cannot read {frame}: {error.strerror}")
    except FrameError as error:
        fail(f"{frame} is no frame, or a damaged one: {error}")
    for table in frame_tables(found):
        console.print(table)
    write_json(json_file, asdict(found) | {"bits_per_parameter": found.bits_per_parameter})
