"""The commands as a user types them."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gradsieve.codec import encode
from gradsieve.lab.cli import app
from gradsieve.lab.demo.shown import SHOWN
from gradsieve.lab.link import LinkError, ShapedLink
from gradsieve.lab.workloads.mnist import SHA256
from gradsieve.recording.files import read_steps

COMMAND = [str(Path(sys.executable).with_name("gradsieve"))]


def gradsieve(*arguments, timeout=200, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "120"} | environment,
        check=False,
    )


def answered(*arguments):
    """What the command answers in this process: another one would import torch first.

    What a user would see as a traceback is raised here.
    """
    words = list(map(str, arguments))
    return CliRunner().invoke(app, words, env={"COLUMNS": "120"}, catch_exceptions=False)


def link_can_be_shaped():
    try:
        ShapedLink(2, "1gbit").close()
    except LinkError:
        return False
    return True


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    ran = gradsieve("demo", "--steps", 24, "--out", out, "--json", out / "rows.json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return out, ran.stdout


def test_help_names_every_command():
    ran = gradsieve("--help")
    assert ran.returncode == 0
    assert "demo" in ran.stdout
    assert "bench" in ran.stdout


def test_demo_ends_with_a_table_of_all_methods(demo):
    _, printed = demo
    for title in (
        "plain DDP",
        "lock-step (the limit)",
        "sieve, default",
        "sieve, 2 σ",
        "sieve, unsent mean",
    ):
        assert title in printed
    assert ("1 Gbit/s each way" if link_can_be_shaped() else "not shaped") in printed


def test_demo_measures_what_travelled(demo):
    rows = {row["method"]: row for row in json.loads((demo[0] / "rows.json").read_text())}
    assert list(rows) == [shown.method for shown in SHOWN]
    dense, limit, _, sieve, _ = rows.values()
    assert limit["metric"] is None
    assert all(
        row["ratio"] * row["limit_seconds"] == pytest.approx(row["step_seconds"])
        for row in rows.values()
    )
    # 3,274,634 float32 gradients, once each way at two ranks, and their headers.
    assert 13.0e6 < dense["bytes_per_step"] < 14.5e6
    assert limit["bytes_per_step"] < 5000
    assert sieve["bytes_per_step"] < dense["bytes_per_step"] / 3
    frames = sieve["bits_per_parameter"] / 8 * 3_274_634
    assert frames == pytest.approx(sieve["bytes_per_step"], rel=0.1)
    assert 0 <= sieve["metric"] <= 1
    assert all(row["metric_name"] == "test accuracy" for row in rows.values())


def test_demo_writes_records_figures_and_a_page(demo):
    out, _ = demo
    for shown in SHOWN:
        lines = read_steps(out / shown.name / "records.jsonl")
        assert [line["step"] for line in lines] == list(range(24))
        assert (out / shown.name / "histograms.jsonl").exists() == shown.exchanges
    sieved = read_steps(out / "sigma-2" / "records.jsonl")[-1]
    assert set(sieved["thresholds"]) == {"conv2.weight", "dense1.weight", "dense2.weight"}
    for figure in ("layer-threshold", "density", "training-accuracy", "time", "histogram"):
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "index.html").read_text().partition("<script")[0]
    assert "sieve, default" in page
    assert "times the limit" in page


def test_a_rank_that_fails_ends_the_demo_with_its_words(tmp_path):
    for name in SHA256:
        (tmp_path / name).write_bytes(b"damaged")
    ran = gradsieve("demo", "--steps", 20, "--out", tmp_path / "out", GRADSIEVE_DATA=str(tmp_path))
    assert ran.returncode == 1
    assert "has SHA-256" in ran.stderr
    assert "rank" in ran.stderr


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
            "start_step and residual_decay are for bench rate",
        ),
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


def test_bench_select_prints_and_writes_its_rows(tmp_path):
    target = tmp_path / "rows.json"
    ran = gradsieve("bench", "select", "--numel", 65536, "--repeats", 3, "--json", target)
    assert ran.returncode == 0, ran.stderr
    assert "ratio" in ran.stdout
    written = json.loads(target.read_text())
    assert {row["density"] for row in written["rows"]} == {0.001, 0.01, 0.05, 0.30}
    for row in written["rows"]:
        assert row["ratio"] == pytest.approx(row["select_rate"] / row["add_rate"])
    assert written["first_call_seconds"] > written["first_call_cached_seconds"] > 0


def test_bench_step_trains_by_each_method_in_turn(tmp_path):
    local = "local:every=5,delay=1,density=0.01"
    target, methods = tmp_path / "rows.json", ("ddp", "sieve:density=0.01,rotation=0", local)
    chosen = [argument for method in methods for argument in ("--method", method)]
    small = ("--workload", "gpt-small", "--steps", 20, "--rounds", 1)
    ran = gradsieve("bench", "step", *small, *chosen, "--out", tmp_path, "--json", target)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "held-out loss" in ran.stdout
    dense, sieve, apart = json.loads(target.read_text())
    assert (dense["method"], sieve["method"], apart["method"]) == methods
    for row in (dense, sieve, apart):
        assert row["rounds"] == 1
        assert 2 < row["metric"] < 6
    # 1.04 million float32 gradients, once each way at two ranks.
    assert 4.1e6 < dense["bytes_per_step"] < 4.6e6
    assert sieve["bytes_per_step"] < dense["bytes_per_step"] / 20
    assert apart["alone_seconds"] > 0
    assert sieve["alone_seconds"] is None
    assert apart["bytes_per_step"] < sieve["bytes_per_step"]
    assert apart["bits_per_parameter"] < sieve["bits_per_parameter"] / 2
    assert len(list(tmp_path.glob("*/rank0.log"))) == 3


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


def test_bench_codec_measures_bits_and_peers(tmp_path):
    out, plot = tmp_path / "rows.json", tmp_path / "rates.png"
    ran = gradsieve(
        "bench", "codec", "--workload", "mnist_cnn", "--repeats", 3, "--json", out, "--plot", plot
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = json.loads(out.read_text())
    rows = {(row["source"], row["density"]): row for row in written["rows"]}
    assert {source for source, _ in rows} == {"uniform", "mnist_cnn"}
    for row in rows.values():
        assert row["position_ratio"] <= 1.03
        assert row["frame_ratio"] <= 1.08
        assert row["position_ratio"] <= row["unsplit_ratio"] + 0.01
        assert min(row["encode_rate"], row["decode_rate"]) > 0
    clustered = rows["mnist_cnn", 0.01]
    assert clustered["position_ratio"] < 0.95 < rows["uniform", 0.01]["position_ratio"]
    methods = {peer["method"] for peer in written["peers"]}
    assert {"fp16", "8-bit", "PowerSGD rank 1", "PowerSGD rank 2", "PowerSGD rank 4"} <= methods
    assert set(written["bounds"]) == {"uniform", "mnist_cnn"}
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "rates.pdf"], "must end in .png or .svg"),
        (["--plot", "no/such/folder/rates.png"], "is no folder"),
        (["--json", "no/such/folder/rates.json"], "is no folder"),
    ],
)
def test_bench_codec_says_before_it_measures_what_it_cannot_write(arguments, words):
    said = answered("bench", "codec", *arguments)
    assert said.exit_code == 1
    assert words in " ".join(said.stderr.split())
    assert "done" not in said.stdout


def test_bench_codec_refuses_an_unknown_workload():
    said = answered("bench", "codec", "--workload", "resnet")
    assert said.exit_code == 1
    assert "choose from mnist_cnn" in said.stderr


def test_bench_rate_plays_what_is_new_and_shows_all(tmp_path):
    runs, plot = tmp_path / "runs.jsonl", tmp_path / "rate.png"
    common = ["bench", "rate", "--steps", "1", "--runs", runs]
    first = gradsieve(*common, "--method", "dense", "--method", "sieve:density=0.1")
    assert first.returncode == 0, first.stderr
    assert len(runs.read_text().splitlines()) == 2
    again = gradsieve(*common, "--method", "dense", "--plot", plot)
    assert again.returncode == 0, again.stderr
    assert len(runs.read_text().splitlines()) == 2
    assert "sieve:density=0.1" in again.stdout
    assert "held-out loss" in again.stdout
    assert plot.stat().st_size > 2000
    others = answered("bench", "rate", "--steps", "7", "--runs", runs)
    assert others.exit_code == 1
    assert "holds no runs" in others.stderr
    assert "dense" not in others.stdout
    unknown = answered(*common, "--method", "8-bit", "--method", "zip")
    assert unknown.exit_code == 1
    assert "'zip' is no method" in unknown.stderr
    assert len(runs.read_text().splitlines()) == 2, "trained before the mistake was found"


def test_the_version_and_the_command_as_a_module():
    ran = subprocess.run(
        [sys.executable, "-m", "gradsieve", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == version("gradsieve")


def test_plan_predicts_and_compares(tmp_path):
    rows = tmp_path / "rows.json"
    row = {
        "workload": "mnist_cnn",
        "link": "2 ranks, 1 Gbit/s each way (tbf)",
        "ranks": 2,
        "method": "ddp",
        "step_seconds": 0.15,
        "limit_seconds": 0.06,
        "bits_per_parameter": 32.0,
    }
    rows.write_text(json.dumps([row]))
    own = ("--parameters", "100M", "--step-ms", 100, "--link", "1gbit", "--ranks", 2, "--ranks", 64)
    to = ("--out", tmp_path / "plan", "--json", tmp_path / "plan.json")
    ran = gradsieve("plan", *own, "--rows", rows, *to)
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "plan.json").read_text())
    assert [planned["ranks"] for planned in content["rows"]] == [2, 64]
    assert all(planned["seconds"]["dense"] > 3 for planned in content["rows"])
    assert all(number > 0 for number in content["machine"].values())
    (compared,) = content["comparisons"]
    assert 0.1 < compared["predicted_seconds"] < 0.3
    assert "100,000,000 parameters" in ran.stdout
    assert "two-shot" in ran.stdout
    assert "predicted and measured" in ran.stdout
    assert "measuring this machine" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--parameters", "100M"), "together"),
        (("--workload", "nothing"), "no workload"),
        (("--rows", "missing.json"), "cannot read the rows"),
        (("--link", "100"), "write the unit"),
    ],
)
def test_plan_says_what_is_wrong(arguments, words, tmp_path):
    said = answered("plan", *arguments, "--out", tmp_path)
    assert said.exit_code == 1
    assert words in said.stderr


def test_plan_takes_parameters_with_a_unit():
    said = answered("plan", "--parameters", "350Q", "--step-ms", 100)
    assert said.exit_code == 2
    assert "350M" in said.stderr


def test_bench_exchange_shows_each_way_on_each_number_of_ranks(tmp_path):
    few = ("--numel", 2**20, "--ranks", 2, "--ranks", 3, "--link", "none")
    ran = gradsieve("bench", "exchange", *few, "--out", tmp_path, "--json", tmp_path / "rows.json")
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["exchange"], row["ranks"]) for row in rows] == [
        ("gather", 2),
        ("two-shot", 2),
        ("gather", 3),
        ("two-shot", 3),
    ]
    for row in rows:
        assert 0 < row["transfer_seconds"] < row["seconds"] < 20
        # 1 % of a million elements, at ten to fifteen bits.
        assert 10_000 < row["frame_bytes"] < 45_000
        assert row["sent_bytes"] > row["frame_bytes"] / 2
    assert "loopback, 2 ranks: gather ..." in ran.stderr
    assert (tmp_path / "loopback-two-shot-3" / "found.json").exists()
    refused = answered("bench", "exchange", "--exchange", "pigeon")
    assert refused.exit_code == 1
    assert "pigeon" in refused.stderr


def test_bench_recorder_measures_scalars_and_histograms(tmp_path):
    rows = tmp_path / "rows.json"
    few = ("--workload", "mnist_cnn", "--steps", 12, "--out", tmp_path / "out", "--json", rows)
    ran = gradsieve("bench", "recorder", *few)
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads(rows.read_text())
    assert (row["parameters"], row["layers"]) == (3_274_634, 8)
    assert 0 < row["scalars"] < row["histograms"] < 1
    assert 0 < row["record_bytes"] < row["histogram_bytes"]
    assert (tmp_path / "out" / "mnist_cnn" / "records" / "histograms.jsonl").exists()
    unknown = answered("bench", "recorder", "--workload", "resnet")
    assert unknown.exit_code == 1
    assert "choose from mnist_cnn" in unknown.stderr
