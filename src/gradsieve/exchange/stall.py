"""Wait for other ranks, and look now and then whether they can still come."""

import atexit
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

STALL = 3.0
"""The seconds of a wait after which it looks around, and again after as many."""
SECONDS_AT_EXIT = 10.0
Look = Callable[[], None]
_left: list[dist.Work] = []


def wait_for_job(done: "Future[None]", look: Look) -> None:
    while True:
        try:
            return done.result(STALL)
        except TimeoutError:
            look()


def leave(work: dist.Work) -> None:
    """Nobody waits for this collective any more, and it goes on."""
    if not work.is_completed():
        _left.append(work)


@atexit.register
def wait_for_what_was_left() -> None:
    """Wait until collectives fail because the other ranks end.

    A process that ends before them is aborted when they fail.
    """
    end = time.monotonic() + SECONDS_AT_EXIT
    for work in _left:
        # Its failure was told, or is that of ranks that have ended.
        with suppress(RuntimeError):
            work.wait(timedelta(seconds=max(0.001, end - time.monotonic())))
