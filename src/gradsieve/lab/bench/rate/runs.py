"""The file of finished runs: each is a line, and none is played twice.

Several processes may read, append and play at once.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from gradsieve.lab.bench.rate.play import PlayedRun, Setting


class RunFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[PlayedRun]:
        """Yield every run. Raises ValueError where a line is no run."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            # Whoever appends is waited for, so that no line is cut.
            fcntl.flock(file, fcntl.LOCK_SH)
            lines = list(file)
        for number, line in enumerate(lines, 1):
            try:
                yield PlayedRun(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is no finished run: {error}"
                ) from None

    def find(self, setting: Setting) -> PlayedRun | None:
        return next((run for run in self if run.key == setting.key), None)

    def append(self, run: PlayedRun) -> None:
        """Append a run as a whole line, or nothing. Raises OSError where the disk is full, say."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(asdict(run)) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(f"{self.path}: {written} of {len(line)} bytes were written")
            except OSError:
                file.truncate(size)
                raise

    @contextmanager
    def claim(self, setting: Setting) -> Iterator[bool]:
        """Claim a run that is to be played; the block gets whether no other process has.

        The claim ends with the block or with the process, however that ends. A process must not
        claim a second run within the block.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with beside(self.path, ".lock").open("ab") as file:
            is_mine = True
            try:
                # A run is one byte of the lock file, which stays empty.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place_of(setting))
            except (BlockingIOError, PermissionError):
                is_mine = False
            yield is_mine


def beside(path: Path, ending: str) -> Path:
    """Return the path of a file beside the file of runs, "rate.jsonl.lock"."""
    return path.with_name(path.name + ending)


def place_of(setting: Setting) -> int:
    """Return a number for the setting, the same in every process, below 2⁶²."""
    text = json.dumps(asdict(setting), sort_keys=True)
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 2
