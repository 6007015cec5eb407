"""The commands of `gradsieve bench` as a user runs them."""

import json

import pytest
from commands import answered, gradsieve


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


def test_bench_exchange_shows_its_rows_on_each_number_of_ranks(tmp_path):
    few = ("--numel", 2**20, "--ranks", 2, "--ranks", 3, "--link", "none", "--exchange", "two-shot")
    ran = gradsieve("bench", "exchange", *few, "--out", tmp_path, "--json", tmp_path / "rows.json")
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["exchange"], row["ranks"]) for row in rows] == [
        ("two-shot", 2),
        ("two-shot", 3),
    ]
    for row in rows:
        assert 0 < row["transfer_seconds"] < row["seconds"] < 20
        # 1 % of a million elements, at ten to fifteen bits.
        assert 10_000 < row["frame_bytes"] < 45_000
        assert row["sent_bytes"] > row["frame_bytes"] / 2
    assert "loopback, 2 ranks: two-shot ..." in ran.stderr
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
