"""The commands as a user types them."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from commands import answered, gradsieve

from gradsieve.codec import encode


def test_help_names_every_command():
    ran = gradsieve("--help")
    assert ran.returncode == 0
    assert "demo" in ran.stdout
    assert "bench" in ran.stdout


MISSING = (
    ["demo", "--steps", "20", "--link", "none", "--out"],
    ["study", "mnist", "--quick", "--link", "none", "--out"],
    ["bench", "step", "--link", "none", "--out"],
    ["bench", "recorder", "--out"],
    ["bench", "rate", "--workload", "mlp", "--method", "dense", "--runs"],
    ["plan", "--out"],
)


@pytest.mark.parametrize("command", MISSING)
def test_missing_data_is_told_before_a_rank_is_started(command, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADSIEVE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(subprocess, "Popen", None)
    said = answered(*command, tmp_path / "out")
    assert said.exit_code == 1
    assert "Name the directory that holds the MNIST files" in said.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


OUTPUTS = (
    ["bench", "select", "--json"],
    ["bench", "codec", "--json"],
    ["bench", "codec", "--plot"],
    ["bench", "step", "--json"],
    ["bench", "exchange", "--json"],
    ["bench", "recorder", "--json"],
    ["bench", "rate", "--method", "dense", "--json"],
    ["bench", "rate", "--method", "dense", "--runs"],
    ["plan", "--json"],
    ["demo", "--json"],
    ["demo", "--out"],
    ["study", "mnist", "--out"],
    ["plan", "--out"],
    ["bench", "step", "--out"],
    ["report", ".", "--json"],
    ["report", "--frame", "nothing", "--json"],
)


@pytest.mark.parametrize("command", OUTPUTS)
def test_what_cannot_be_written_is_told_before_anything_is_measured(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    taken = tmp_path / "taken.svg"
    if command[-1] == "--out":
        taken.write_text("a file")
    else:
        taken.mkdir()
    for path in (taken, "/proc/rows.svg", "x" * 300 + ".svg"):
        said = answered(*command, path)
        assert said.exit_code == 1, said.output
        assert "cannot write" in said.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == [taken]


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    from gradsieve.lab.console import require_outputs

    kept, link = tmp_path / "kept.json", tmp_path / "link.json"
    kept.write_text("rows")
    link.symlink_to(tmp_path / "target.json")
    os.mkfifo(tmp_path / "pipe")
    out = tmp_path / "a" / "b"
    require_outputs(kept, link, tmp_path / "pipe", tmp_path / "new.json", out / "in.json", out=out)
    assert kept.read_text() == "rows"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", "link.json", "pipe"]
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--link", "fast"], "not a rate"),
        (["demo", "--out", "/proc/nowhere"], "cannot write"),
        (["demo", "--steps", "3"], "20"),
        (["bench", "select", "--numel", "7"], "4096"),
        (["bench", "nothing"], "nothing"),
        (["bench", "step", "--method", "powersgd:x"], "'powersgd:x' is no method: RANK must be"),
        (["bench", "step", "--method", "local:every=11", "--steps", "20"], "phases of 11 steps"),
        (
            ["bench", "step", "--method", "local:every=3,start_step=9"],
            "start_step, residual_decay and holds are for bench rate",
        ),
        (["bench", "step", "--method", "hsdp"], "give --ranks 4 --ranks-per-node 2"),
        (["bench", "step", "--ranks", "3", "--ranks-per-node", "2"], "into nodes of 2"),
        (["bench", "rate", "--runs", "nowhere.jsonl"], "nowhere.jsonl holds no runs"),
        (["bench", "step", "--workload", "resnet"], "no workload 'resnet'"),
        (["bench", "step", "--link", "fast"], "not a rate"),
        (["bench", "exchange", "--link", "none", "--link", "fast"], "not a rate"),
        (["bench", "exchange", "--link", "5kbit"], "a link has 10 kbit/s or more"),
        (["bench", "step", "--json", "no/such/folder/rows.json"], "is no folder"),
        (["bench", "select", "--json", "no/such/folder/rows.json"], "is no folder"),
        (["demo", "--json", "no/such/folder/rows.json"], "is no folder"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    said = answered(*arguments)
    assert said.exit_code != 0
    assert words in said.stderr


def test_a_refusal_is_no_traceback():
    ran = gradsieve("bench", "step", "--link", "fast")
    assert ran.returncode == 1
    assert "not a rate" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_report_prints_a_frame(tmp_path):
    values = torch.tensor([0.9, -1.5, 4.0])
    indices = torch.tensor([3, 700, 2500], dtype=torch.int32)
    path = tmp_path / "frame.bin"
    encode(indices, values, 3000, threshold=0.75).numpy().tofile(path)
    ran = gradsieve("report", "--frame", path, "--json", tmp_path / "frame.json")
    assert ran.returncode == 0, ran.stderr
    assert "levels" in ran.stdout
    assert "3,000" in ran.stdout
    written = json.loads((tmp_path / "frame.json").read_text())
    assert written["sections"][0]["survivors"] == 3
    assert written["sections"][0]["threshold"] == 0.75
    refused = answered("report", "--frame", path, "--json", tmp_path)
    assert refused.exit_code == 1
    assert "cannot write" in refused.stderr


def test_report_says_what_is_wrong_with_a_file(tmp_path):
    missing = answered("report", "--frame", tmp_path / "none.bin")
    assert missing.exit_code == 1
    assert "cannot read" in missing.stderr
    garbage = tmp_path / "garbage.bin"
    np.arange(100, dtype=np.uint8).tofile(garbage)
    refused = answered("report", "--frame", garbage)
    assert refused.exit_code == 1
    assert "magic" in refused.stderr


def test_the_version_and_the_command_as_a_module():
    ran = subprocess.run(
        [sys.executable, "-m", "gradsieve", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == version("gradsieve")
