"""The line that says that rotating is dear: once, and only where it is."""

import pytest

from gradsieve.rotation import cost
from gradsieve.rotation.cost import FIRST, LAST, RotationCost, ScarceBits
from gradsieve.runtime import notices


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(notices, "_told", set())


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: seconds[0])
    return seconds


def steps(clock, rotating, first=0.0):
    """Steps of a second, some share of which is rotation; the first ones are longer."""
    costs, rotated = RotationCost(), 0.0
    for step in range(1, 3 * LAST):
        clock[0] += 1.0 + (100.0 if step <= FIRST else 0.0)
        rotated += rotating + (first if step <= FIRST else 0.0)
        costs.end_step(rotated)


def test_a_dear_rotation_is_told_once(clock, caplog):
    steps(clock, 0.4)
    told = caplog.text
    assert told.count("takes 40% of a step") == told.count("rotation=0") == 1


def test_a_cheap_one_is_not(clock, caplog):
    steps(clock, 0.1, first=99.0)
    assert not caplog.text


@pytest.mark.parametrize(("bits", "lines"), [(0.1, 1), (0.5, 0)])
def test_where_few_bits_fit_a_line_says_once_what_makes_more_of_them(bits, lines, caplog):
    scarce = ScarceBits()
    for _ in range(3 * LAST):
        scarce.end_step(bits)
    assert caplog.text.count("0.10 bits an element fit") == lines
