"""Threads that share the work of one call, and the cores that they may run on."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
_pool: ThreadPoolExecutor
_helper_seconds = 0.0


def _make_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="gradsieve")


_make_pool()
# A forked child inherits the pool's bookkeeping, not its threads: it would wait for ever.
os.register_at_fork(after_in_child=_make_pool)


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def helper_seconds() -> float:
    """Return the processor seconds that the threads of the pool have worked so far."""
    return _helper_seconds


def shared(work: Callable[[int], T], count: int, threads: int) -> list[T]:
    """Return [work(0), ..., work(count - 1)], made by at most `threads` threads.

    The caller is one of them. An error of `work` is raised as soon as all threads have stopped.
    """
    if min(threads, count) <= 1:
        return [work(number) for number in range(count)]
    results: dict[int, T] = {}
    numbers = iter(range(count))

    def help_out() -> None:
        global _helper_seconds
        start = time.thread_time()
        take()
        _helper_seconds += time.thread_time() - start

    def take() -> None:
        for number in numbers:
            try:
                results[number] = work(number)
            except BaseException:
                # The others need not go on.
                for _ in numbers:
                    pass
                raise

    helpers = [_pool.submit(help_out) for _ in range(min(threads, count) - 1)]
    try:
        take()
    finally:
        started = [helper for helper in helpers if not helper.cancel()]
        wait(started)
    for helper in started:
        helper.result()
    return [results[number] for number in range(count)]
