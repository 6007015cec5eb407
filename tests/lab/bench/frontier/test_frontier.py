"""Sets of runs: what they hold, and that they are played once, whole and without orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from commands import answered

from gradsieve.lab.bench.frontier import conductor
from gradsieve.lab.bench.frontier.conductor import Conductor
from gradsieve.lab.bench.frontier.progress import Speeds, set_rows, unfinished
from gradsieve.lab.bench.frontier.sets import SETS, find_sets, settings_of
from gradsieve.lab.bench.rate.play import PlayedRun, Setting
from gradsieve.lab.bench.rate.runs import RunFile
from gradsieve.lab.methods.table import read_method
from gradsieve.lab.workloads.workload import load_workload
from gradsieve.runtime.threads import usable_cores

SHARED = Path(__file__).parents[3] / "shared"
SETTING = Setting(
    workload="gpt-small", method="dense", learning_rate=1e-3, seed=0, steps=1, ranks=2
)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A file of runs, with workers that take no time."""
    monkeypatch.setattr(conductor, "WORKER", "fake_worker")
    path = os.pathsep.join([str(SHARED), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return RunFile(tmp_path / "runs.jsonl")


def started(file):
    lines = Path(f"{file.path}.started").read_text().splitlines()
    return [json.loads(line) for line in lines]


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(holds):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it never came to be")


@pytest.mark.parametrize("one", SETS.values(), ids=lambda one: one.name)
def test_sets_hold_methods_and_workloads_that_there_are(one):
    settings = list(one.settings())
    assert len(settings) == len(set(settings)) > 2
    for setting in settings:
        assert load_workload(setting.workload).name == setting.workload
        read_method(setting.method)
    # Whoever compares gives each optimizer to dense training, too.
    dense = {setting.workload for setting in settings if setting.method == "dense"}
    assert dense == {setting.workload for setting in settings}


def test_seeds_replace_those_of_a_set_and_sets_join():
    few = settings_of(find_sets(["quick"]), [3, 4])
    assert {setting.seed for setting in few} == {3, 4}
    both = settings_of(find_sets(["adamw-2", "muon-2", "adamw-2"]))
    assert len(both) == sum(len(list(SETS[name].settings())) for name in ("adamw-2", "muon-2"))


def test_runs_are_played_on_one_core_and_one_thread_and_never_twice(fake):
    settings = [replace(SETTING, seed=seed) for seed in range(4)]
    told = []
    cores = usable_cores()
    outcome = Conductor(fake, cores, told.append).play([*settings, settings[0]])
    assert outcome.failed == outcome.elsewhere == []
    runs = list(fake)
    assert sorted(run.seed for run in runs) == sorted(run.seed for run in told) == [0, 1, 2, 3]
    allowed = {f"cores [{core}], threads 1" for core in os.sched_getaffinity(0)}
    assert {run.torch for run in runs} <= allowed
    assert len(os.sched_getaffinity(0)) == cores
    assert Conductor(fake, 1).play(settings).failed == []
    assert len(started(fake)) == 4


def test_a_run_that_fails_does_not_stop_the_others(fake):
    settings = [replace(SETTING, method=method) for method in ("fail", "elsewhere", "dense")]
    outcome = Conductor(fake, 1).play(settings)
    assert outcome.failed == [(settings[0], "ValueError: this method fails (status 1)")]
    assert outcome.elsewhere == [settings[1]]
    assert [run.method for run in fake] == ["dense"]


def test_a_run_that_another_process_has_claimed_is_left_to_it(fake):
    code = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'ab')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 0)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, f"{fake.path}.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        outcome = Conductor(fake, 1).play([SETTING])
        other.kill()
    assert outcome.elsewhere == [SETTING]
    assert not fake.path.exists()


CONDUCT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from gradsieve.lab.bench.frontier import cli, conductor
from gradsieve.lab.bench.rate.play import Setting
from gradsieve.lab.bench.rate.runs import RunFile
conductor.WORKER = "fake_worker"
settings = [Setting(**one) for one in json.loads(sys.argv[2])]
print(cli.play_all(settings, RunFile(Path(sys.argv[1])), 1))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_killed_leaves_no_orphan_and_the_next_goes_on(fake, number):
    methods = ("dense", "hang", "fp16")
    settings = [replace(SETTING, method=method) for method in methods]
    words = json.dumps([{name: getattr(s, name) for name in s.__slots__} for s in settings])
    killed = subprocess.Popen(
        [sys.executable, "-c", CONDUCT, str(fake.path), words], stderr=subprocess.PIPE, text=True
    )
    marker = Path(f"{fake.path}.started")
    wait_until(lambda: marker.exists() and '"hang"' in marker.read_text())
    killed.send_signal(number)
    said = killed.communicate(timeout=60)[1]
    if number == signal.SIGTERM:
        assert killed.returncode == 130 or "typer" in said
    hung = started(fake)[-1]["pid"]
    wait_until(lambda: not is_alive(hung))
    assert [run.method for run in fake] == ["dense"]
    others = [settings[0], settings[2]]
    assert Conductor(fake, 1).play(others).failed == []
    assert [run.method for run in fake] == ["dense", "fp16"]
    assert [line["method"] for line in started(fake)] == ["dense", "hang", "fp16"]


def made(setting, seconds):
    values = {name: getattr(setting, name) for name in setting.__slots__}
    return PlayedRun(
        **values, bits_per_parameter=1, quality=1, curve=[[1, 1]], seconds=seconds, torch="2"
    )


def test_hours_are_those_of_finished_runs_of_the_same_task():
    # A step of one rank takes 0.1 s.
    runs = [made(replace(SETTING, steps=300), 60.0), made(replace(SETTING, ranks=8, steps=5), 4.0)]
    rest = [replace(SETTING, steps=1000, ranks=8), replace(SETTING, steps=1000, ranks=1)]
    assert Speeds(runs).hours(rest, 2) == pytest.approx(0.1 * 9000 / 2 / 3600)
    muon = replace(SETTING, workload="gpt-small:optimizer=muon", steps=36_000, ranks=1)
    assert Speeds(runs).hours([muon], 1) == pytest.approx(1)
    assert Speeds(runs).hours([replace(SETTING, workload="mlp")], 2) is None
    assert Speeds([]).hours([], 2) == 0


def test_rows_count_what_is_done():
    (one,) = find_sets(["quick"])
    settings = list(one.settings())
    runs = [made(setting, 2.0) for setting in settings[:2]] + [made(SETTING, 1.0)]
    (row,) = set_rows([one], runs, [], 1)
    assert (row.runs, row.done, row.left) == (len(settings), 2, len(settings) - 2)
    assert unfinished(settings, runs) == settings[2:]


def test_the_command_lists_the_sets(tmp_path):
    rows = tmp_path / "rows.json"
    said = answered("bench", "frontier", "--runs", tmp_path / "runs.jsonl", "--json", rows)
    assert said.exit_code == 0
    assert all(name in said.stdout for name in SETS)
    assert [row["name"] for row in json.loads(rows.read_text())] == list(SETS)
    assert {row["hours"] for row in json.loads(rows.read_text())} == {None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["adamw"], "there is no set 'adamw'; choose from quick, adamw-2"),
        (["--background"], "name the sets to play: quick"),
        (["--plot", "rate.png"], "name the sets to play"),
        (["quick", "--cores", "4096"], "--cores 4096 is more than the"),
        (["quick", "--plot", "rate.pdf"], "must end in .png or .svg"),
        (["quick", "--runs", "/proc/runs.jsonl"], "cannot write"),
    ],
)
def test_what_cannot_be_played_is_told_first(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    said = answered("bench", "frontier", *arguments)
    assert said.exit_code == 1
    assert words in " ".join(said.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_told_before_anything_is_played(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADSIEVE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(subprocess, "Popen", None)
    said = answered("bench", "frontier", "mnist-4", "--runs", tmp_path / "runs.jsonl")
    assert said.exit_code == 1
    assert "Name the directory that holds the MNIST files" in said.stderr


def test_failures_are_told_at_the_end_and_what_is_finished_is_drawn(fake, monkeypatch, tmp_path):
    (one,) = find_sets(["quick"])
    methods = ("dense", "fail", "fp16")
    part = replace(one.parts[0], methods=methods)
    monkeypatch.setitem(SETS, "quick", replace(one, parts=(part,)))
    plot = tmp_path / "frontier.svg"
    said = answered("bench", "frontier", "quick", "--runs", fake.path, "--plot", plot)
    assert said.exit_code == 1
    words = " ".join(said.stderr.split())
    assert "1 runs failed: gpt-small, fail at 0.002, seed 0: ValueError: this method" in words
    assert "2 of 3: gpt-small, fp16" in words
    assert "fp16" in said.stdout
    assert "dense training" in plot.read_text()


def test_a_command_in_the_background_plays_a_set_once_and_draws_it(tmp_path):
    """The real thing, at its smallest: two steps of each run."""
    runs, plot = tmp_path / "runs.jsonl", tmp_path / "frontier.png"
    arguments = ["bench", "frontier", "quick", "--runs", runs, "--plot", plot, "--background"]
    said = answered(*arguments)
    assert said.exit_code == 0
    pid = int(said.stdout.split()[1])
    assert f"kill {pid}" in said.stdout
    assert os.getsid(pid) == pid
    log = tmp_path / "runs.jsonl.log"
    assert str(log) in said.stdout.replace("\n", "")
    os.waitpid(pid, 0)
    wanted = list(SETS["quick"].settings())
    runs = list(RunFile(runs))
    assert len(runs) == len(wanted), log.read_text()
    assert unfinished(wanted, runs) == []
    assert f"{len(wanted)} of {len(wanted)}: " in log.read_text()
    assert plot.stat().st_size > 10_000
    coded = [run for run in runs if run.bits_at_entropy is not None]
    assert [run.method for run in coded] == ["sparseloco:every=2"]
    assert 0 < coded[0].bits_at_entropy < coded[0].bits_per_parameter < 1
