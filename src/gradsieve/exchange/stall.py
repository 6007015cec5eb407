"""Wait for other ranks, and check now and then whether they can still come."""

import atexit
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

STALL = 3.0
"""Seconds of waiting from one call of `look` to the next."""
SECONDS_AT_EXIT = 10.0
"""Seconds that a process waits at its end for collectives that nobody waits for."""
Look = Callable[[], None]
"""Is called now and then during a wait. It may raise an error, which ends the wait."""
_left: list[dist.Work] = []


def wait_for_job(done: "Future[None]", look: Look) -> None:
    while True:
        try:
            return done.result(STALL)
        except TimeoutError:
            look()


def wait_for_work(work: dist.Work, look: Look) -> None:
    """Wait for a collective between tensors in CPU memory.

    Args:
        look: see `Look`.

    Raises:
        RuntimeError: the collective has failed.
    """
    while not work.is_completed():
        # Either the time is over, or the collective has failed, which the last wait raises.
        with suppress(RuntimeError):
            work.wait(timedelta(seconds=STALL))
        if not work.is_completed():
            look()
    work.wait()


def leave(work: dist.Work) -> None:
    """Remember a collective that goes on although nobody waits for it any more."""
    if not work.is_completed():
        _left.append(work)


@atexit.register
def wait_for_what_was_left() -> None:
    """Wait until the remembered collectives fail because the other ranks end.

    A process that ends before its collectives fail is aborted.
    """
    end = time.monotonic() + SECONDS_AT_EXIT
    for work in _left:
        # The failure was reported before, or only means that other ranks have ended.
        with suppress(RuntimeError):
            work.wait(timedelta(seconds=max(0.001, end - time.monotonic())))
