"""Short training runs send and compute the same bits as when they were recorded."""

import json

import pytest
from cases import CASES
from compare import RECORDED, by_rank, differences, small_parts
from play import play_all

KEPT = [case for case in CASES.values() if case.is_kept]
ADVICE = """

`python tests/golden/record.py OUT.json` at the commit before, and `--compare OUT.json` here, say
in which step what differs first. If the change is meant: `python tests/golden/record.py --keep`."""


@pytest.fixture(scope="module")
def played():
    return by_rank(small_parts(play_all(KEPT, in_one_set=len(KEPT))))


@pytest.fixture(scope="module")
def recorded():
    return by_rank(json.loads(RECORDED.read_text()))


def test_every_kept_case_is_recorded(recorded):
    assert [*recorded] == [case.name for case in KEPT]


@pytest.mark.parametrize("name", [case.name for case in KEPT])
def test_a_run_is_the_recorded_one(played, recorded, name):
    found = [*differences({name: recorded[name]}, {name: played[name]})]
    if found:
        pytest.fail("\n".join(found) + ADVICE, pytrace=False)
