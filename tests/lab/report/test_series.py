"""Rows that charts are drawn from, and sentences written from records."""

import pytest
from written import LAYERS, write_run

from gradsieve.lab.report import series
from gradsieve.lab.report.distribution import WHOLE_MODEL, bars, drawn, marks
from gradsieve.lab.report.series import columns, grouped, layer_rows, metrics_of, step_rows
from gradsieve.lab.report.source import read_source
from gradsieve.lab.report.summary import sentences, stage_rows, summary_rows, summary_table


@pytest.fixture
def groups(tmp_path):
    write_run(tmp_path / "ddp", "plain DDP", method="ddp", metric=0.95)
    write_run(tmp_path / "a", "2 σ", seed=1, metric=0.92)
    write_run(tmp_path / "b", "2 σ", seed=2, metric=0.94)
    return grouped(read_source(tmp_path).runs)


def test_metrics_are_what_the_loop_has_logged(groups):
    assert metrics_of(run for runs in groups.values() for run in runs) == ["loss", "accuracy"]


def test_a_row_a_title_and_step_with_the_extremes_of_seeds(groups):
    rows = step_rows(groups, ["loss"])
    assert len(rows) == 120
    last = rows[-1]
    assert (last["run"], last["step"]) == ("2 σ", 59)
    # The mean of the last 2 % of 60 steps is the last step's.
    assert last["metric0"] == last["metric0_low"] == last["metric0_high"] == pytest.approx(2 / 6.9)
    assert (last["density"], last["bits"], last["exposed"]) == (5, 0.5, 4)
    assert rows[0]["density"] is None
    assert "metric0_low" not in rows[0]


def test_long_runs_are_thinned_to_means(groups, monkeypatch):
    monkeypatch.setattr(series, "POINTS", 45)
    rows = step_rows(groups, ["loss"])
    assert [row["step"] for row in rows if row["run"] == "2 σ"] == [*range(3, 60, 4)]
    assert rows[-1]["residual"] == pytest.approx(1 + 57.5 / 100)


def test_a_row_a_pruned_layer(groups):
    rows = layer_rows(groups)
    assert len(rows) == 60 * len(LAYERS)
    assert rows[0] == {
        "run": "2 σ",
        "step": 0,
        "layer": LAYERS[0],
        "threshold": 0.1,
        "density": 5.0,
    }


def test_many_layers_are_thinned_too(groups):
    rows = layer_rows(groups, points=10 * len(LAYERS))
    assert len(rows) == 10 * len(LAYERS)
    assert {row["step"] for row in rows} == set(range(0, 60, 6))


def test_a_moving_mean_skips_what_is_unknown():
    steps = [{"x": value} for value in (1.0, None, float("nan"), 4.0, True)]
    assert series.moving_mean(steps, "x") == [1, None, None, 4, 1]


def test_columns_hold_the_rows():
    rows = [{"run": "a", "x": 1.23456}, {"run": "a", "x": None}, {"run": "b", "x": float("nan")}]
    assert columns(rows) == {
        "run": {"words": ["a", "b"], "runs": [[0, 2], [1, 1]]},
        "x": [1.235, None, None],
    }


def test_shapes_hold_all_of_the_elements(groups):
    shape = drawn(groups)["2 σ"]["gradient"][WHOLE_MODEL][0]
    assert sum(row["share"] for row in bars(shape, "linear")) == pytest.approx(100, abs=1)
    assert sum(row["share"] for row in bars(shape, "log")) == pytest.approx(100, abs=0.1)
    names = [mark["name"] for mark in marks(shape, "linear")]
    assert names == ["−2 σ", "−1 σ", "mean", "+1 σ", "+2 σ"]
    assert 20 < shape["beyond"][0] < 40


def test_the_summary_is_written_from_the_records(groups):
    headings, rows = summary_table(groups)
    found = [dict(zip(headings, row, strict=True)) for row in rows]
    assert found[0]["run"] == "plain DDP"
    assert found[0]["sent, %"] == "–"
    assert found[1]["test"] == "0.9300 (0.9200 to 0.9400)"
    assert found[1]["× the limit"] == "1.10"
    setting, sending, learning = sentences(groups)
    assert "3 runs of 2 settings of 60 steps on 2 ranks" in setting
    assert "8,000 parameters" in setting
    assert "2 cores" in setting
    assert "0.5 bits a parameter and step, 64 times fewer than float32" in sending
    assert "1.10 times the limit, plain DDP's 3.00" in sending
    assert "Test accuracy is 0.9500 with plain DDP" in learning
    assert learning.endswith("0.9300 with “2 σ” (one seed).")


def test_a_run_of_the_users_own_is_told_of_too(tmp_path):
    write_run(tmp_path, "mine", method="")
    source = read_source(tmp_path)
    setting, sending, learning = sentences(grouped(source.runs))
    assert (
        setting == "One run of 60 steps on 2 ranks with 8,000 parameters; a machine with 2 cores."
    )
    assert sending.endswith("the exchange adds 4.0 ms to a pruned step.")
    assert "“mine” went from" in learning
    (row,) = summary_rows(source)
    assert (row["density"], row["exposed_seconds"]) == (0.05, 0.004)
    assert stage_rows(grouped(source.runs)) == []


def test_stages_add_up_to_the_step(groups):
    rows = stage_rows(groups)
    assert sum(row["milliseconds"] for row in rows if row["run"] == "2 σ") == pytest.approx(110)
    named = {row["stage"]: row["milliseconds"] for row in rows if row["run"] == "2 σ"}
    assert named["compute"] == pytest.approx(100)
    assert named["select and encode"] == pytest.approx(3)
