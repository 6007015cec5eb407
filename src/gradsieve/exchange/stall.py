"""Waiting for other ranks: whoever waits for long looks around."""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, TimeoutError

import torch
from torch import Tensor

STALL = 3.0
"""Seconds of a wait after which it looks around, and again every so often."""
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
    """Their results; raises what `look` raises, and RuntimeError where one has failed."""
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
    """It fails when the other ranks end; a process that ends before is aborted by then."""
    end = time.monotonic() + SECONDS_AT_EXIT
    for future in _left:
        event_of(future).wait(max(0.0, end - time.monotonic()))


def event_of(future: torch.futures.Future[Tensor]) -> threading.Event:
    """Set when the future is done; torch has no wait that ends."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return done
