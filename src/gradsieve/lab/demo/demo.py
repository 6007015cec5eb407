"""Run the methods in turn, then write the table, the figures and the page."""

from pathlib import Path

from rich.console import Console

from gradsieve.lab.demo.comparison import Row, rich_table
from gradsieve.lab.demo.progress import RunProgress
from gradsieve.lab.demo.shown import SHOWN
from gradsieve.lab.link import Link, open_link, require_link
from gradsieve.lab.report.report import write_report
from gradsieve.lab.report.source import read_source
from gradsieve.lab.runs.config import RunConfig, RunResult
from gradsieve.lab.runs.launch import RunError, launch
from gradsieve.runtime.threads import usable_cores

WORKLOAD = "mnist_cnn"


class DemoError(RuntimeError):
    """The demo cannot run here; the message says what to do."""


def run_demo(
    *,
    steps: int,
    ranks: int,
    link: str,
    learning_rate: float,
    out: Path,
    seed: int,
    console: Console,
) -> list[Row]:
    """Train with each method in SHOWN and return their rows.

    Raises:
        DemoError: an option is out of range, the output directory cannot be written, or a run
            failed.
    """
    try:
        require_link(ranks, link)
        make_directory(out)
        with open_link(ranks, link) as opened:
            tell_link(opened, ranks, console)
            results = run_all(
                opened,
                steps=steps,
                ranks=ranks,
                learning_rate=learning_rate,
                out=out,
                seed=seed,
                console=console,
            )
    except (RunError, ValueError) as error:
        raise DemoError(str(error)) from error
    rows = [Row(shown, result) for shown, result in zip(SHOWN, results, strict=True)]
    console.print(rich_table(rows))
    page = write_report(read_source(out), out, title="gradsieve demo")
    console.print(f"Open [bold]{page}[/bold] for the curves; records and plots lie beside it.")
    return rows


def sampled_steps(steps: int) -> tuple[int, ...]:
    """Return five steps, from the first to the last."""
    return tuple(round(part * (steps - 1) / 4) for part in range(5))


def make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".write-test").touch()
        (out / ".write-test").unlink()
    except OSError as error:
        raise DemoError(
            f"cannot write to {out}: {error.strerror}; give --out another directory"
        ) from error


def tell_link(link: Link, ranks: int, console: Console) -> None:
    cores = usable_cores()
    console.print(f"MNIST network, 3.3 M parameters, on {cores} cores; {link.description}")
    if cores < ranks:
        console.print(f"[yellow]{ranks} ranks share {cores} cores: steps are slower than alone.")


def run_all(
    link: Link,
    *,
    steps: int,
    ranks: int,
    learning_rate: float,
    out: Path,
    seed: int,
    console: Console,
) -> list[RunResult]:
    results = []
    progress = RunProgress(console, steps)
    with progress.bars:
        for shown in SHOWN:
            config = RunConfig(
                workload=WORKLOAD,
                method=shown.method,
                ranks=ranks,
                steps=steps,
                directory=str(out / shown.name),
                interface=link.interface,
                link=link.description,
                learning_rate=learning_rate,
                seed=seed,
                title=shown.title,
                histograms_at=sampled_steps(steps) if shown.exchanges else (),
            )
            progress.begin(shown.title, out / shown.name)
            results.append(launch(config, link, progress.update))
            progress.update()
    return results
