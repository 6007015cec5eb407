"""`gradsieve demo` as a user runs it."""

import json

import pytest
from commands import gradsieve, link_can_be_shaped

from gradsieve.lab.demo.shown import SHOWN
from gradsieve.lab.workloads.mnist import SHA256
from gradsieve.recording.files import read_steps


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    ran = gradsieve("demo", "--steps", 24, "--out", out, "--json", out / "rows.json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return out, ran.stdout


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
