"""Files of records: a heading, then one JSON object a line."""

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from gradsieve.telemetry import finite

FORMAT = 1
"""Of the records of a recorder; a reader refuses newer ones."""
RECORDS, HISTOGRAMS = "records.jsonl", "histograms.jsonl"

Line = dict[str, Any]


class RecordsError(ValueError):
    """What lies on disk cannot be read as records; the message says what to do."""


class RecordFile:
    """Appends lines. What cannot be written is told once and lost; training goes on."""

    def __init__(self, path: Path, heading: Mapping[str, object]) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._is_torn, self._has_told = False, False
        self._begin = {"gradsieve": version("gradsieve"), "format": FORMAT, **heading}

    def write(self, line: Mapping[str, object]) -> None:
        try:
            if self._file is None:
                self._open()
            self._append(line)
        except OSError as error:
            self._is_torn = True
            self._tell(error)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what a killed process has written is there.
        self._file = self.path.open("ab", buffering=0)
        if self._file.tell():
            with self.path.open("rb") as before:
                before.seek(-1, 2)
                self._is_torn = before.read(1) != b"\n"
        self._append(self._begin)

    def _append(self, line: Mapping[str, object]) -> None:
        if self._file is None:
            return
        text = json.dumps(finite(dict(line)), separators=(",", ":")) + "\n"
        data = (("\n" if self._is_torn else "") + text).encode()
        if self._file.write(data) != len(data):
            raise OSError(28, "No space left on device")
        self._is_torn = False

    def _tell(self, error: OSError) -> None:
        if not self._has_told:
            tell_not_written(self.path, error)
        self._has_told = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def tell_not_written(path: Path, error: OSError) -> None:
    print(
        f"gradsieve: cannot write {path}: {error.strerror}; training goes on, what is not written "
        "is lost",
        file=sys.stderr,
        flush=True,
    )


def read_lines(path: Path) -> Iterator[Line]:
    """The objects in a file; a line that was cut short is left out.

    Raises:
        RecordsError: the file cannot be read, or a newer gradsieve wrote it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RecordsError(f"cannot read {path}: {error.strerror}") from error
    for line in text.split("\n"):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            require_format(path, found)
            yield found


def require_format(path: Path, line: Line) -> None:
    found = line.get("format", FORMAT)
    if is_heading(line) and not (isinstance(found, int) and found <= FORMAT):
        raise RecordsError(
            f"{path} is of format {found}, this gradsieve reads up to {FORMAT}: it was written by "
            f"gradsieve {line.get('gradsieve')}; install that or a newer one to read it"
        )


def is_heading(line: Line) -> bool:
    return "gradsieve" in line and "format" in line


def read_steps(path: Path) -> list[Line]:
    """The records in the order of their steps; of a step that was made again the last one."""
    by_step = {line["step"]: line for line in read_lines(path) if is_step(line)}
    return [by_step[step] for step in sorted(by_step)]


def is_step(line: Line) -> bool:
    step = line.get("step")
    return isinstance(step, int) and not isinstance(step, bool)


def read_heading(path: Path) -> Line:
    """All headings of a file in one: a run that goes on writes another."""
    heading: Line = {}
    for line in read_lines(path):
        if is_heading(line):
            heading |= line
    return heading
