"""Plays many runs at once, each in a process of its own on a core of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO

from gradsieve.lab.bench.frontier.worker import ELSEWHERE
from gradsieve.lab.bench.rate.play import PlayedRun, Setting
from gradsieve.lab.bench.rate.runs import RunFile

WORKER = "gradsieve.lab.bench.frontier.worker"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
POLL_SECONDS = 0.2
END_SECONDS = 5.0
LAST_BYTES = 2000


@dataclass(slots=True)
class Worker:
    setting: Setting
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    """What the process writes to standard error."""

    def last_words(self) -> str:
        """Return the last line that the process wrote, the error's own."""
        size = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, size - LAST_BYTES))
        lines = self.errors.read().decode(errors="replace").split("\n")
        told = [line.strip() for line in lines if line.strip()]
        status = self.process.returncode
        killed = f"ended by signal {-status}" if status < 0 else f"status {status}"
        return f"{told[-1]} ({killed})" if told else killed


@dataclass(slots=True)
class Outcome:
    failed: list[tuple[Setting, str]] = field(default_factory=list)
    """Runs that ended with an error, with its words."""
    elsewhere: list[Setting] = field(default_factory=list)
    """Runs that another process was playing."""


class Conductor:
    """Plays what a file of runs does not hold.

    Args:
        finished: is called with each run that has been played.
    """

    def __init__(
        self, file: RunFile, cores: int, finished: Callable[[PlayedRun], object] = lambda run: None
    ) -> None:
        self.file, self.finished = file, finished
        self.free = deque(usable_places(cores))
        self.outcome = Outcome()

    def play(self, settings: Sequence[Setting]) -> Outcome:
        """Play the runs in this order. However it ends, no process is left behind."""
        waiting = deque(settings)
        running: list[tuple[int | None, Worker]] = []
        try:
            while waiting or running:
                while waiting and self.free:
                    if (worker := self.begin(waiting.popleft(), self.free[0])) is not None:
                        running.append((self.free.popleft(), worker))
                time.sleep(POLL_SECONDS if running else 0)
                for place, worker in [*running]:
                    if worker.process.poll() is not None:
                        running.remove((place, worker))
                        self.free.append(place)
                        self.end(worker)
        finally:
            stop([worker for _, worker in running])
        return self.outcome

    def begin(self, setting: Setting, place: int | None) -> Worker | None:
        """Start a run; None if it is finished, or another process plays it."""
        if self.file.find(setting) is not None:
            return None
        with self.file.claim(setting) as is_free:
            pass
        if not is_free:
            self.outcome.elsewhere.append(setting)
            return None
        errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the worker
        command = [sys.executable, "-m", WORKER, str(self.file.path), json.dumps(asdict(setting))]
        with on_core(place):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | ONE_THREAD,
            )
        return Worker(setting, process, errors)

    def end(self, worker: Worker) -> None:
        """Take what a run that has ended leaves."""
        status = worker.process.returncode
        if status == 0 and (run := self.file.find(worker.setting)) is not None:
            self.finished(run)
        elif status == ELSEWHERE:
            self.outcome.elsewhere.append(worker.setting)
        else:
            self.outcome.failed.append((worker.setting, worker.last_words()))
        close(worker)


def usable_places(cores: int) -> list[int | None]:
    """Return so many cores to pin runs to; None where the system pins nothing."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * cores
    return [*sorted(os.sched_getaffinity(0))[:cores]]


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Pin what is started within the block to a core, before it counts its cores."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        close(worker)


def close(worker: Worker) -> None:
    worker.errors.close()
    if worker.process.stdin is not None:
        worker.process.stdin.close()
