"""The training runs and the tables of benchmarks that gradsieve has written into a directory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradsieve.lab.methods.table import trains_together
from gradsieve.lab.report.printable import printable
from gradsieve.lab.runs.config import CONFIG, RESULT
from gradsieve.recording.files import (
    HISTOGRAMS,
    RECORDS,
    Line,
    RecordsError,
    read_run,
    read_steps,
)
from gradsieve.recording.sample import Histograms, from_json

RECORD_MARKS = frozenset({"step", "thresholds", "frame_bytes"})
"""The keys that mark a line as the record of a step, whatever the name of its file."""


TABLE_MARKS = (
    frozenset({"method", "bits_per_parameter"}),
    frozenset({"exchange", "ranks", "sent_bytes"}),
    frozenset({"source", "density", "bits_per_parameter"}),
    frozenset({"threads", "select_rate"}),
    frozenset({"workload", "histograms"}),
    frozenset({"workload", "link", "bits"}),
)
"""The keys that mark the rows of a benchmark."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The histograms of a step."""

    step: int
    histograms: Histograms


@dataclass(frozen=True)
class Run:
    """A training run that has been recorded."""

    name: str
    """The place of the run under the directory."""
    path: Path
    """The file of its records."""
    config: Line
    """Empty where a script of the user has trained."""
    result: Line
    """Empty where the run did not end."""

    @cached_property
    def written(self) -> tuple[Line, list[Line]]:
        heading, steps = read_run(self.path)
        return printable(heading), printable(steps)

    @property
    def heading(self) -> Line:
        return self.written[0]

    @property
    def steps(self) -> list[Line]:
        return self.written[1]

    @cached_property
    def counted(self) -> list[Counted]:
        """The histograms of the run. Raises RecordsError where a line is no histogram."""
        path = self.path.parent / HISTOGRAMS
        if self.path.name != RECORDS or not path.exists():
            return []
        try:
            return [
                Counted(line["step"], from_json(printable(line["histograms"])))
                for line in read_steps(path)
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordsError(f"{path} holds what is no histogram: {error}") from error

    @property
    def title(self) -> str:
        """The title of the run; runs of one title differ only in their seeds."""
        about = self.heading.get("about") or {}
        return str(self.config.get("title") or about.get("title") or self.name)

    @cached_property
    def pruned(self) -> list[str]:
        """The parameters that were pruned in any step, the largest first."""
        names = {name for line in self.steps for name in line.get("thresholds") or ()}
        return sorted(names, key=lambda name: (-self.parameters.get(name, 0), name))

    @property
    def trains_together(self) -> bool:
        """Whether the ranks had a common model in the end."""
        return trains_together(str(self.config.get("method")))

    @property
    def parameters(self) -> dict[str, int]:
        """The number of elements of each parameter, by name, where a recorder has written it."""
        found: dict[str, int] = self.heading.get("parameters") or {}
        return found


@dataclass(frozen=True, slots=True)
class Rows:
    """A table that a benchmark has written."""

    name: str
    rows: list[Line]


@dataclass(frozen=True, slots=True)
class Source:
    directory: Path
    runs: list[Run]
    tables: list[Rows]


def read_source(directory: Path) -> Source:
    """Find the runs, in the order in which they were started, and the tables of a directory.

    Raises:
        RecordsError: it is no directory, holds nothing that gradsieve has written, or something
            that a newer version has written.
    """
    if not directory.is_dir():
        raise RecordsError(f"{directory} is no directory; give the one that was written to")
    runs = [run for run in found_runs(directory) if run.steps]
    runs.sort(key=lambda run: run.heading.get("started") or 0)
    tables = list(found_tables(directory))
    broken = [path for path in sorted(directory.rglob(RECORDS)) if path.is_file()]
    if not runs and not tables and broken:
        raise RecordsError(
            f"{broken[0]} holds no record of a step: it is damaged, or was cut short"
        )
    if not runs and not tables:
        raise RecordsError(
            f"no records in {directory}: expected {RECORDS}, lines of gs.JsonLines (*.jsonl) or "
            "rows of a benchmark (*.json), there or below"
        )
    return Source(directory, runs, tables)


def found_runs(directory: Path) -> Iterator[Run]:
    for path in sorted(directory.rglob("*.jsonl")):
        if not path.is_file() or (path.name != RECORDS and not holds_records(path)):
            continue
        name = path.parent if path.name == RECORDS else path.with_suffix("")
        yield Run(
            name=printable(
                name.relative_to(directory).as_posix() if name != directory else directory.name
            ),
            path=path,
            config=object_in(path.parent / CONFIG) if path.name == RECORDS else {},
            result=object_in(path.parent / RESULT) if path.name == RECORDS else {},
        )


def holds_records(path: Path) -> bool:
    """Return whether a file begins with a record; one that cannot be read does not."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.keys() >= RECORD_MARKS


def found_tables(directory: Path) -> Iterator[Rows]:
    for path in sorted(directory.rglob("*.json")):
        rows = content_of(path)
        if isinstance(rows, dict):
            rows = rows.get("rows")
        if isinstance(rows, list) and rows and all(map(is_row, rows)):
            yield Rows(printable(path.relative_to(directory).with_suffix("").as_posix()), rows)


def is_row(row: object) -> bool:
    return isinstance(row, dict) and any(row.keys() >= marks for marks in TABLE_MARKS)


def object_in(path: Path) -> Line:
    found = content_of(path)
    return found if isinstance(found, dict) else {}


def content_of(path: Path) -> Any:
    """Return the JSON in a file; None where there is no such file, or it is cut short."""
    try:
        return printable(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
