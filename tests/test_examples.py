"""The README's script, plain and with the diff, under torchrun; the other examples."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradsieve.recording.files import read_steps
from gradsieve.topology.choice import FIRST_RUN

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))


def torchrun(script, directory, ranks=2):
    return subprocess.run(
        [TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), str(script)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )


def added_lines():
    lines = (EXAMPLES / "gradsieve.diff").read_text().splitlines()
    return [line for line in lines if line.startswith("+") and not line.startswith("+++")]


@pytest.fixture
def patched(tmp_path):
    (tmp_path / "examples").mkdir()
    script = tmp_path / "examples" / "train.py"
    script.write_text((EXAMPLES / "train.py").read_text())
    subprocess.run(
        ["git", "apply", str(EXAMPLES / "gradsieve.diff")], cwd=tmp_path, check=True, env=os.environ
    )
    return script


def test_the_plain_script_runs(tmp_path):
    ran = torchrun(EXAMPLES / "train.py", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "test accuracy 0." in ran.stdout


def test_the_diff_is_five_lines_and_the_script_trains_with_it(patched, tmp_path):
    assert len(added_lines()) == 5
    ran = torchrun(patched, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.split("test accuracy")[1]) > 0.5
    assert "50 steps (" in ran.stdout
    assert "bits a parameter" in ran.stdout
    for rank in range(2):
        state = torch.load(tmp_path / "checkpoint" / f"sieve-rank{rank}.pt", weights_only=True)
        assert state["step"] == 50
    records = read_steps(tmp_path / "run" / "records.jsonl")
    assert len(records) == 50
    # On loopback any step but those after the first dense ones may be dense, the last too.
    assert not records[FIRST_RUN]["plain"]
    for record in records:
        assert record["density"] == 1 if record["plain"] else 0 < record["density"] < 1
    samples = read_steps(tmp_path / "run" / "histograms.jsonl")
    assert [sample["step"] for sample in samples] == [0, 10, 20, 30, 40]
    assert {sample["ranks"] for sample in samples} == {2}
    counted = samples[0]["histograms"]
    assert counted["weight"].keys() == counted["gradient"].keys()


def test_the_readme_shows_the_lines_of_the_diff():
    readme = (EXAMPLES.parent / "README.md").read_text()
    for line in added_lines():
        assert line[1:].strip() in readme


def test_local_steps(tmp_path):
    ran = torchrun(EXAMPLES / "local_steps.py", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "7 steps (" in ran.stdout
    assert float(ran.stdout.split("test accuracy")[1]) > 0.7


def test_fsdp_between_nodes(tmp_path):
    ran = torchrun(EXAMPLES / "fsdp.py", tmp_path, ranks=4)
    assert ran.returncode == 0, ran.stderr
    assert "20 steps (" in ran.stdout
    assert float(ran.stdout.split("test accuracy")[1]) > 0.5
    assert len([*(tmp_path / "checkpoint").glob("sieve-rank*.pt")]) == 4


def test_the_reference_sends_less_and_learns_as_much(capsys):
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(EXAMPLES / "reference.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    ends = re.findall(
        r"step 100: +([\d,]+) bytes a step, accuracy (0\.\d+)", capsys.readouterr().out
    )
    (all_bytes, all_learned), (sent, learned) = [
        (int(count.replace(",", "")), float(accuracy)) for count, accuracy in ends
    ]
    assert sent < all_bytes / 4
    assert learned > all_learned - 0.02 > 0.8
