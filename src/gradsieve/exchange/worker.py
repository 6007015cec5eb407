"""The one communication thread of a rank.

Every rank must issue its collectives in the same order, so that all of them go through one queue.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

Job = tuple[Callable[[], None], "Future[None]"]


class ExchangeWorker:
    """Runs jobs in the order in which they came, while the backward pass goes on."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._pending: list[Future[None]] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            # A daemon: a collective that waits for a dead peer must not keep the process alive.
            self._thread = threading.Thread(
                target=self._work, name="gradsieve-exchange", daemon=True
            )
            self._thread.start()
        done: Future[None] = Future()
        self._pending.append(done)
        self._jobs.put((job, done))

    def finish(self) -> None:
        """Wait for the jobs so far; raise the first error of theirs, as it was raised.

        Jobs behind the one that failed were not run.
        """
        for done in self._pending:
            done.result()
        self._pending = []
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            if self._error is None:
                try:
                    job()
                except BaseException as error:
                    self._error = error
            # While the thread waits, the last job would keep everything that it names alive.
            del job
            done.set_result(None)
            del done
