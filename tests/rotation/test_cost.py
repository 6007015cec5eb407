"""The warning that rotating is dear: once, and only where it is."""

import warnings

import pytest

from gradsieve.rotation import cost
from gradsieve.rotation.cost import LAST, RotationCost


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: seconds[0])
    return seconds


def steps(clock, rotating, whole, count=3 * LAST):
    costs = RotationCost()
    for _ in range(count):
        clock[0] += whole
        costs.add(rotating)


def test_a_dear_rotation_is_told_once(clock):
    with pytest.warns(UserWarning, match="takes 40% of a step.*rotation=0") as told:
        steps(clock, 0.4, 1.0)
    assert len(told) == 1


def test_a_cheap_one_is_not(clock):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(clock, 0.1, 1.0)


def test_the_first_steps_do_not_count(clock):
    costs = RotationCost()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(2 * LAST):
            clock[0] += 100.0 if step < 5 else 1.0
            costs.add(99.0 if step < 5 else 0.01)
