"""Threads that share work give its results in order and its errors, and hang on neither."""

import os
import threading

import pytest

from gradsieve.runtime.threads import shared


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 17])
def test_results_are_in_order(count, threads):
    assert shared(lambda number: number**2, count, threads) == [n**2 for n in range(count)]


def test_two_threads_are_at_work_at_once():
    both = threading.Barrier(2, timeout=20)
    shared(lambda _: both.wait(), 2, 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_when_no_thread_works_any_more(threads):
    working = set()

    def work(number):
        working.add(number)
        try:
            if number == 3:
                raise ValueError("three")
        finally:
            working.remove(number)

    with pytest.raises(ValueError, match="three"):
        shared(work, 30, threads)
    assert not working


def test_a_forked_child_has_threads_of_its_own():
    shared(abs, 4, 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if shared(abs, 4, 2) == [0, 1, 2, 3] else 1)
    assert os.waitpid(child, 0)[1] == 0
