"""The file of finished runs, with several processes at it."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gradsieve.lab.bench.rate.play import PlayedRun, Setting
from gradsieve.lab.bench.rate.runs import RunFile
from gradsieve.lab.console import require_outputs

ROOT = Path(__file__).parents[4]
SETTING = Setting(
    workload="gpt-small", method="dense", learning_rate=1e-3, seed=0, steps=2, ranks=2
)
RUN = PlayedRun(
    **asdict(SETTING),
    bits_per_parameter=32.0,
    quality=2.0,
    curve=[[2, 2.0]],
    seconds=1.0,
    torch="2",
)
BEGIN = """
import sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_runs import RUN, SETTING
from gradsieve.lab.bench.rate.runs import RunFile
from gradsieve.lab.console import require_outputs
file = RunFile(Path(sys.argv[1]))
"""
APPEND = """
start = int(sys.argv[3])
for seed in range(start, start + 20):
    require_outputs(file.path, out=file.path.parent)
    run = replace(RUN, seed=seed, method="local:" + "x" * 3000)
    assert file.find(run) is None
    file.append(run)
    assert file.find(run) == run
"""
HOLD = """
with file.claim(SETTING) as is_mine:
    print(is_mine, flush=True)
    time.sleep(600)
"""


def started(code, path, *arguments):
    command = [sys.executable, "-c", BEGIN + code, path, Path(__file__).parent, *arguments]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


def test_processes_that_append_and_check_at_once_lose_nothing(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    processes = [started(APPEND, path, 100 * number) for number in range(3)]
    assert [process.wait(300) for process in processes] == [0, 0, 0]
    seeds = [run.seed for run in RunFile(path)]
    assert len(seeds) == 60
    # What one process appends stands in its order.
    assert [seed for seed in seeds if seed < 100] == list(range(20))
    assert set(seeds) == {100 * number + seed for number in range(3) for seed in range(20)}


def test_a_run_is_claimed_once_and_free_when_its_process_is_killed(tmp_path):
    file = RunFile(tmp_path / "runs.jsonl")
    holder = started(HOLD, file.path)
    assert holder.stdout.readline() == "True\n"
    with file.claim(SETTING) as is_mine:
        assert not is_mine
    with file.claim(replace(SETTING, seed=1)) as is_mine:
        assert is_mine
    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    with file.claim(SETTING) as is_mine:
        assert is_mine
    assert not file.path.exists()


def test_checking_an_output_shows_nothing_to_other_processes(tmp_path, monkeypatch):
    """Another process would take a file for finished, or a folder for its own."""
    made = []
    monkeypatch.setattr(Path, "mkdir", lambda path, *a, **b: made.append(path))
    monkeypatch.setattr(Path, "unlink", lambda path, *a, **b: made.append(path))
    monkeypatch.setattr(Path, "touch", lambda path, *a, **b: made.append(path))
    require_outputs(tmp_path / "runs.jsonl", tmp_path / "a" / "b.json", out=tmp_path / "a")
    assert made == []
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_does_not_fit_the_disk_leaves_the_file_whole(tmp_path):
    # A limit on the size of files stands for a full disk.
    file = RunFile(tmp_path / "runs.jsonl")
    file.append(RUN)
    whole = file.path.read_bytes()
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = file.path.stat().st_size + 20
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    file.append(replace(RUN, seed=1))
except OSError as error:
    print("refused")
"""
    process = started(code, file.path)
    assert process.communicate(timeout=120)[0] == "refused\n"
    assert file.path.read_bytes() == whole


def test_runs_of_before_positions_were_counted_still_load():
    lines = (ROOT / "docs" / "data" / "rate.jsonl").read_text().splitlines()
    runs = list(RunFile(ROOT / "docs" / "data" / "rate.jsonl"))
    assert len(runs) == len(lines) >= 189
    old = [run for run, line in zip(runs, lines, strict=True) if "bits_at_entropy" not in line]
    assert len(old) >= 189
    assert all(run.bits_at_entropy is None for run in old)


@pytest.mark.parametrize("bits", [None, 0.25])
def test_bits_at_entropy_are_kept(bits, tmp_path):
    file = RunFile(tmp_path / "runs.jsonl")
    file.append(replace(RUN, bits_at_entropy=bits))
    assert file.find(SETTING).bits_at_entropy == bits
    assert json.loads(file.path.read_text())["bits_at_entropy"] == bits
