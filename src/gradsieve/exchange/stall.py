"""Wait for other ranks, and look now and then whether they can still come."""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, TimeoutError

import torch
from torch import Tensor

STALL = 3.0
"""The seconds of a wait after which it looks around, and again after as many."""
SECONDS_AT_EXIT = 10.0
Look = Callable[[], None]
_left: list[torch.futures.Future[Tensor]] = []


def wait_for_job(done: "Future[None]", look: Look) -> None:
    while True:
        try:
            return done.result(STALL)
        except TimeoutError:
            look()


def wait_for_sums(futures: Sequence[torch.futures.Future[Tensor]], look: Look) -> list[Tensor]:
    """Return the results of futures.

    Raises:
        RuntimeError: one has failed; what `look` raises is raised as well.
    """
    try:
        for future in futures:
            if not future.done():
                done = event_of(future)
                while not done.wait(STALL):
                    look()
        return [future.wait() for future in futures]
    except BaseException:
        _left.extend(future for future in futures if not future.done())
        raise


@atexit.register
def wait_for_what_was_left() -> None:
    """Wait until collectives fail because the other ranks end.

    A process that ends before them is aborted when they fail.
    """
    end = time.monotonic() + SECONDS_AT_EXIT
    for future in _left:
        event_of(future).wait(max(0.0, end - time.monotonic()))


def event_of(future: torch.futures.Future[Tensor]) -> threading.Event:
    """Return an event that is set when the future is done; torch has no wait with a timeout."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return done
