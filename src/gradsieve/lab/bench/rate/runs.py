"""The file of finished runs: each is a line, and none is played twice."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

from gradsieve.lab.bench.rate.play import PlayedRun, Setting

KEY = [field.name for field in fields(Setting)]


class RunFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[PlayedRun]:
        """Yield every run. Raises ValueError where a line is no run."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            lines = list(file)
        for number, line in enumerate(lines, 1):
            try:
                yield PlayedRun(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is no finished run: {error}"
                ) from None

    def find(self, setting: Setting) -> PlayedRun | None:
        wanted = asdict(setting)
        return next((run for run in self if all(getattr(run, k) == wanted[k] for k in KEY)), None)

    def append(self, run: PlayedRun) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(run)) + "\n")
