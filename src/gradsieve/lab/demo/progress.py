"""A progress bar for each run, fed from the records that rank 0 writes."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gradsieve.lab.console import log
from gradsieve.lab.runs.tail import Tail


class RunProgress:
    def __init__(self, console: Console, steps: int) -> None:
        self.steps = steps
        self.bars = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>4.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = TaskID(0)
        self.tail = Tail(Path())

    def begin(self, title: str, directory: Path) -> None:
        if not self.bars.console.is_terminal:
            # Without a terminal, rich draws the bars only when all has ended.
            log(f"{title}, {self.steps} steps ...")
        self.tail = Tail(directory)
        self.task = self.bars.add_task(title, total=self.steps, numbers="starting ranks ...")

    def update(self) -> None:
        record = self.tail.newest()
        if record is not None:
            self.bars.update(self.task, completed=record["step"] + 1, numbers=in_words(record))


def in_words(record: dict[str, Any]) -> str:
    rate = 8 * record["sent_bytes"] / record["seconds"] / 1e6
    density = f"  density {record['density']:6.2%}" if "density" in record else ""
    return f"loss {record['loss']:5.2f}{density}  {rate:6.1f} Mbit/s"
