"""Read the newest record of a run that is under way."""

import json
from pathlib import Path

from gradsieve.recording.files import RECORDS, Line, is_step


class Tail:
    """A reader of what was appended to the records in `directory` since the last call."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / RECORDS
        self._position = 0

    def newest(self) -> Line | None:
        """Return the newest record; None if none has come."""
        if not self._path.exists():
            return None
        with self._path.open("rb") as records:
            records.seek(self._position)
            whole, newline, _ = records.read().rpartition(b"\n")
        if not newline:
            return None
        self._position += len(whole) + 1
        line: Line = json.loads(whole.rpartition(b"\n")[2])
        return line if is_step(line) else None
