"""A wait looks around now and then, and tells success from failure."""

import pytest

from gradsieve.exchange.stall import wait_for_work


class Collective:
    """Ends after some waits that were too short, and then has failed or not."""

    def __init__(self, short_waits, *, fails=False, ends_in_wait=False):
        self.left, self.fails, self.ends_in_wait = short_waits, fails, ends_in_wait

    def is_completed(self):
        return self.left <= 0

    def wait(self, timeout=None):
        if self.left > 0:
            assert timeout is not None, "a wait without an end"
            self.left -= 1
            if self.left or self.ends_in_wait:
                raise RuntimeError("Operation timed out!")
        if self.fails:
            raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(("short_waits", "looks"), [(0, 0), (1, 0), (4, 3)])
def test_each_wait_that_is_too_short_ends_with_a_look(short_waits, looks):
    looked = []
    wait_for_work(Collective(short_waits), lambda: looked.append(None))
    assert len(looked) == looks


@pytest.mark.parametrize("short_waits", [0, 1, 3])
def test_a_failure_is_raised_as_it_is(short_waits):
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        wait_for_work(Collective(short_waits, fails=True), lambda: None)


def test_a_collective_that_ends_as_the_time_does_has_not_failed():
    wait_for_work(Collective(2, ends_in_wait=True), lambda: None)


def test_what_a_look_raises_ends_the_wait():
    def look():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_for_work(Collective(3), look)
