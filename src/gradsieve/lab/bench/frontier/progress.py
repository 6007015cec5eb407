"""How much of each set is done, and how long the rest takes."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from gradsieve.lab.bench.frontier.sets import FrontierSet
from gradsieve.lab.bench.rate.play import PlayedRun, Setting
from gradsieve.lab.tables import table_of
from gradsieve.lab.workloads.workload import task_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRow:
    name: str
    about: str
    ranks: int
    runs: int
    done: int
    hours: float | None
    """What the rest takes on so many cores; None where no finished run tells."""

    @property
    def left(self) -> int:
        return self.runs - self.done


class Speeds:
    """The seconds that runs take, by those that are finished.

    A run's time grows with its steps and ranks. The median of a task stands for all its runs.
    """

    def __init__(self, runs: Iterable[PlayedRun]) -> None:
        seconds = defaultdict(list)
        for run in runs:
            seconds[task_of(run.workload)].append(run.seconds / (run.steps * run.ranks))
        self.seconds = {task: statistics.median(own) for task, own in seconds.items()}
        """The seconds of a step of one rank."""

    def hours(self, settings: Sequence[Setting], cores: int) -> float | None:
        """Return the hours of so many runs on so many cores; None where no finished run tells."""
        total = 0.0
        for setting in settings:
            if (seconds := self.seconds.get(task_of(setting.workload))) is None:
                return None
            total += seconds * setting.steps * setting.ranks
        return total / cores / 3600


def set_rows(
    sets: Iterable[FrontierSet], runs: Sequence[PlayedRun], seeds: Sequence[int], cores: int
) -> list[SetRow]:
    speeds, rows = Speeds(runs), []
    for one in sets:
        settings = list(one.settings(seeds))
        left = unfinished(settings, runs)
        rows.append(
            SetRow(
                name=one.name,
                about=one.about,
                ranks=one.ranks,
                runs=len(settings),
                done=len(settings) - len(left),
                hours=speeds.hours(left, cores),
            )
        )
    return rows


def unfinished(settings: Sequence[Setting], runs: Iterable[PlayedRun]) -> list[Setting]:
    done = {run.key for run in runs}
    return [setting for setting in settings if setting.key not in done]


def sets_table(rows: Iterable[SetRow], cores: int) -> Table:
    table = table_of(
        ("set", "what", "ranks", "runs", "done", "hours left"),
        title="sets of runs",
        caption=f"hours left: on {cores} cores, by the seconds of finished runs",
        words=("set", "what"),
    )
    for row in rows:
        table.add_row(
            row.name, row.about, str(row.ranks), str(row.runs), str(row.done), hours_of(row.hours)
        )
    return table


def hours_of(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.1f}"
