"""What the core tells reaches the user without any configuration, once, from one rank."""

import subprocess
import sys

import pytest

from gradsieve.runtime import notices
from gradsieve.runtime.notices import tell


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(notices, "_told", set())


def test_once(monkeypatch, caplog):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for _ in range(3):
        tell("one")
    tell("another")
    assert caplog.messages == ["one", "another"]
    assert {record.name for record in caplog.records} == {"gradsieve"}


@pytest.mark.parametrize(("rank", "count"), [("0", 1), ("1", 0)])
def test_by_the_first_rank_of_a_machine(monkeypatch, caplog, rank, count):
    monkeypatch.setenv("LOCAL_RANK", rank)
    tell("one")
    assert len(caplog.messages) == count


def test_any_rank_tells_what_concerns_it_alone(monkeypatch, caplog):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for _ in range(2):
        tell("one", any_rank=True)
    assert caplog.messages == ["one"]


def test_without_configuration_it_is_printed_as_it_is():
    script = "import runpy, sys; runpy.run_path(sys.argv[1])['tell']('gradsieve: 50% of it')"
    ran = subprocess.run(
        [sys.executable, "-c", script, notices.__file__],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stderr == "gradsieve: 50% of it\n"
