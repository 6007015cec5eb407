"""The communication thread of a rank.

Every rank must issue its collectives in the same order. All of them therefore go through one queue.
"""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch

from gradsieve.exchange.stall import Look, wait_for_job


@dataclass(slots=True)
class Job:
    run: Callable[[], None]
    errors: list[BaseException]
    """The errors of all jobs of a step. After the first error, the others are not run."""
    done: "Future[None]"


LOCAL_SECONDS, OTHER_SECONDS = 60.0, 3.0
"""Seconds that a process waits at its end, for a local job and for any other job."""
Jobs = queue.SimpleQueue[Job | None]


class ExchangeWorker:
    """Runs jobs in the order in which they came, in a thread beside the backward pass."""

    def __init__(self) -> None:
        _workers.add(self)
        self._last_local: Future[None] | None = None
        self._jobs: Jobs = queue.SimpleQueue()
        self._pending: list[Future[None]] = []
        self._errors: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def submit_local(self, run: Callable[[], None]) -> None:
        """Submit a job that waits for no rank of another node, while no exchange is under way.

        The process waits for it before it ends. Python would crash if the thread still computed.
        """
        self.submit(run)
        self._last_local = self._pending[-1]

    def finish_at_exit(self) -> None:
        """Wait long for local jobs and briefly for others, whose ranks may be gone; end the thread.

        Python would crash if the thread woke up while the process ends.
        """
        if self._last_local is not None:
            wait([self._last_local], LOCAL_SECONDS)
        wait(self._pending, OTHER_SECONDS)
        if self._thread is not None and self.is_idle:
            self._jobs.put(None)
            self._thread.join(OTHER_SECONDS)

    @property
    def is_idle(self) -> bool:
        return all(done.done() for done in self._pending)

    def submit(self, run: Callable[[], None]) -> None:
        self._start()
        done: Future[None] = Future()
        self._pending.append(done)
        self._jobs.put(Job(run, self._errors, done))

    def finish(self, look: Look = lambda: None) -> None:
        """Wait for the jobs so far, and raise their first error unchanged.

        Args:
            look: a function that is called now and then during a long wait. It may raise an error,
                which ends the wait.
        """
        for done in self._pending:
            wait_for_job(done, look)
        errors, self._errors, self._pending = self._errors, [], []
        if errors:
            raise errors[0]

    def give_up(self, seconds: float) -> None:
        """Drop the jobs so far and their errors, if the jobs end in time."""
        wait(self._pending, seconds)
        if self.is_idle:
            self._errors, self._pending = [], []

    def _start(self) -> None:
        if self._thread is not None:
            return
        # The thread is a daemon, because a collective that waits for a dead rank must not keep the
        # process alive.
        self._thread = threading.Thread(
            target=work, args=(self._jobs,), name="gradsieve-exchange", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)


_workers: "weakref.WeakSet[ExchangeWorker]" = weakref.WeakSet()


@atexit.register
def finish_jobs() -> None:
    for worker in list(_workers):
        worker.finish_at_exit()


def work(jobs: Jobs) -> None:
    """Run the thread until the worker is gone. It must hold no reference to the worker."""
    # Asking for torch's number of threads applies it to BLAS in this thread. Otherwise products
    # would run on as many threads as there are cores, and would be added up in another order.
    torch.get_num_threads()
    while True:
        job = jobs.get()
        if job is None:
            return
        if not job.errors:
            try:
                job.run()
            except BaseException as error:
                job.errors.append(error)
        done = job.done
        del job
        done.set_result(None)
        del done
