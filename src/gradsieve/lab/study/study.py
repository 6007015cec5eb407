"""Make every run that is missing, then write the page."""

import shutil
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from gradsieve.lab.console import log, require_data, working
from gradsieve.lab.link import Link, open_link, require_link
from gradsieve.lab.report.source import Source, read_source
from gradsieve.lab.runs.config import RunConfig
from gradsieve.lab.runs.launch import launch
from gradsieve.lab.runs.order import FOUND
from gradsieve.lab.runs.tail import Tail
from gradsieve.lab.runs.throughput import measure_throughput, read_throughput
from gradsieve.lab.study.page import write_study
from gradsieve.lab.study.variants import RUNS, WORKLOAD, Study, is_finished

THROUGHPUT = "throughput"


def run_study(study: Study, link: str, console: Console) -> tuple[Path, Source]:
    """Run what no earlier call has finished; return the page of the study and its runs.

    Raises:
        RunError: a rank of a run failed; what is finished stays.
        ValueError: a number is out of range, or the directory holds finished runs of other
            settings.
        OSError: the directory cannot be written.
    """
    require_link(study.ranks, link)
    with open_link(study.ranks, link) as opened:
        console.print(f"MNIST network, 3.3 M parameters; {opened.description}")
        runs = study.runs(opened)
        missing = [run for run in runs if not is_finished(run)]
        if missing:
            require_data(WORKLOAD)
        study.out.mkdir(parents=True, exist_ok=True)
        if len(missing) < len(runs):
            console.print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished already.")
        # All runs of a directory use one link.
        if len(missing) == len(runs) or not (study.out / THROUGHPUT / FOUND).exists():
            with working("probing the link ..."):
                measure_throughput(opened, study.ranks, study.out / THROUGHPUT)
        if missing:
            make_all(missing, opened, StudyProgress(console, len(missing), study.steps))
    made = {Path(run.directory) for run in runs}
    found = [run for run in read_source(study.out / RUNS).runs if run.path.parent in made]
    source = Source(study.out, found, [])
    return write_study(study, source, read_throughput(study.out / THROUGHPUT)), source


def make_all(runs: list[RunConfig], link: Link, progress: "StudyProgress") -> None:
    with progress.bar:
        for number, run in enumerate(runs):
            progress.begin(number, run)
            directory = Path(run.directory)
            # Remove what was cut short.
            shutil.rmtree(directory, ignore_errors=True)
            launch(run, link, partial(progress.follow, Tail(directory)))


class StudyProgress:
    """One bar over the steps of all runs."""

    def __init__(self, console: Console, runs: int, steps: int) -> None:
        self._runs, self._steps, self._before = runs, steps, 0
        self.bar = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("steps, left:"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=600,
        )
        self._task = self.bar.add_task("", total=runs * steps)

    def begin(self, number: int, run: RunConfig) -> None:
        self._before = number * self._steps
        words = f"{number + 1} of {self._runs}: {run.title}"
        if not self.bar.console.is_terminal:
            left = self.bar.tasks[self._task].time_remaining
            hope = f", about {left / 60:.0f} min left" if left is not None else ""
            log(f"{words}, seed {run.seed}{hope} ...")
        self.bar.update(self._task, completed=self._before, description=words)

    def follow(self, tail: Tail) -> None:
        record = tail.newest()
        if record is not None:
            self.bar.update(self._task, completed=self._before + record["step"] + 1)
