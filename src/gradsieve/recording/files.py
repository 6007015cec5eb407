"""Files of records: one JSON object per line, after a heading line if a recorder wrote them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from errno import ENOSPC
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from gradsieve.runtime.notices import tell
from gradsieve.telemetry.record import StepRecord

FORMAT = 1
"""Version of the format of a recorder's files. A reader refuses newer ones."""
RECORDS, HISTOGRAMS = "records.jsonl", "histograms.jsonl"

Line = dict[str, Any]


class RecordsError(ValueError):
    """A file cannot be read as records. The message says what to do."""


class RecordFile:
    """A file to which lines are appended.

    If a line cannot be written, it is lost. A warning says so once, and training goes on.
    """

    def __init__(self, path: Path, heading: Mapping[str, object] | None = None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._due: Line | None = None
        """The heading until it is written."""
        if heading is not None:
            self._due = {"gradsieve": version("gradsieve"), "format": FORMAT, **heading}
        self._is_torn, self._has_told = False, False

    def write(self, line: Mapping[str, object]) -> None:
        """Append a line. NaN and infinities become null."""
        try:
            if self._file is None:
                self._open()
            if self._due is not None:
                self._append(self._due)
                self._due = None
            self._append(line)
        except OSError as error:
            self._is_torn = True
            if not self._has_told:
                tell_not_written(self._path, error)
            self._has_told = True

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that nothing is lost when the process is killed.
        self._file = self._path.open("ab", buffering=0)
        if self._file.tell():
            with self._path.open("rb") as before:
                before.seek(-1, 2)
                self._is_torn = before.read(1) != b"\n"

    def _append(self, line: Mapping[str, object]) -> None:
        text = ("\n" if self._is_torn else "") + as_text(line) + "\n"
        data = text.encode()
        if self._file is not None and self._file.write(data) != len(data):
            raise OSError(ENOSPC, "No space left on device")
        self._is_torn = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class JsonLines:
    """A function that appends each record to a file, as one JSON object per line.

    Set it as `SieveState.on_step` or `OuterSync.on_step`. If a line cannot be written, it is lost;
    a warning says so once, and training goes on.

    Args:
        path: the file. Its directory is made if it does not exist.

    Example:

        >>> from pathlib import Path
        >>> import gradsieve as gs
        >>> sieve = gs.SieveState(threshold=gs.Sigma(2))
        >>> lines = sieve.on_step = gs.JsonLines("records.jsonl")
        >>> lines.write({"epoch": 0, "accuracy": 0.125})
        >>> lines.close()
        >>> print(Path("records.jsonl").read_text(), end="")
        {"epoch":0,"accuracy":0.125}
    """

    def __init__(self, path: str | Path) -> None:
        self._file = RecordFile(Path(path))

    def __call__(self, record: StepRecord) -> None:
        self.write(asdict(record))

    def write(self, line: Mapping[str, object]) -> None:
        """Append any mapping. NaN and infinities become null."""
        self._file.write(line)

    def close(self) -> None:
        self._file.close()


def as_text(line: Mapping[str, object]) -> str:
    try:
        return json.dumps(dict(line), separators=(",", ":"), allow_nan=False)
    except ValueError:
        # Checking each number first would take longer than writing all of them.
        return json.dumps(finite(dict(line)), separators=(",", ":"))


def finite(value: object) -> object:
    """Return a value with None for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def tell_not_written(path: Path, error: Exception) -> None:
    """Log a warning that a file cannot be written, on any rank."""
    why = getattr(error, "strerror", None) or error
    # Every rank warns, because the others may write elsewhere without an error.
    tell(
        f"gradsieve: cannot write {path}: {why}; training goes on, what is not written is lost",
        any_rank=True,
    )


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the objects in a file. Lines that were cut short are skipped.

    Raises:
        RecordsError: the file cannot be read, or a newer gradsieve has written it.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    require_format(path, found)
                    yield found
    except OSError as error:
        raise RecordsError(f"cannot read {path}: {error.strerror}") from error


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
    """Return the records of the newest run in a file, in the order of their steps."""
    return read_run(path)[1]


def read_run(path: Path) -> tuple[Line, list[Line]]:
    """Return the merged headings of a file, and the records of its newest run in order of steps.

    A heading begins a run or continues one. A run that continues keeps the records of the steps
    before its first own step.
    """
    heading: Line = {}
    by_step: dict[int, Line] = {}
    begins = False
    for line in read_lines(path):
        if is_heading(line):
            heading |= line
            begins = True
        if not is_step(line):
            continue
        if begins:
            by_step = {step: kept for step, kept in by_step.items() if step < line["step"]}
            begins = False
        by_step[line["step"]] = line
    return heading, [by_step[step] for step in sorted(by_step)]


def is_step(line: Line) -> bool:
    step = line.get("step")
    return isinstance(step, int) and not isinstance(step, bool)
