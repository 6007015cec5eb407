"""The study, with runs that are written instead of trained."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from browser import CHROMIUM, try_out
from rich.console import Console
from typer.testing import CliRunner
from written import write_run

from gradsieve.lab.cli import app
from gradsieve.lab.link import Loopback
from gradsieve.lab.methods.table import read_distributed
from gradsieve.lab.report.source import read_source
from gradsieve.lab.runs.launch import RunError
from gradsieve.lab.runs.order import FOUND
from gradsieve.lab.runs.throughput import Throughput
from gradsieve.lab.study import study
from gradsieve.lab.study.original import original_table
from gradsieve.lab.study.variants import COUNTED_AFTER, VARIANTS, Study, is_finished
from gradsieve.recording.histogram import Histogram

LAYERS = ("conv1.weight", "dense1.weight", "dense1.bias")


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longer than all else here."""
    monkeypatch.setattr(study, "write_study", lambda plan, source, probed: plan.out)


@pytest.fixture
def made(monkeypatch):
    """Titles and seeds of the runs that were made."""
    titles = []

    def launch(config, link, watch=lambda: None):
        titles.append((config.title, config.seed))
        directory = Path(config.directory)
        write_run(
            directory,
            config.title,
            method="ddp" if config.method == "ddp" else "sieve",
            steps=config.steps,
            layers=LAYERS,
            histograms_every=10 if config.histograms_at else 0,
            seed=config.seed,
        )
        config.save()
        watch()

    def probe(link, ranks, directory):
        directory.mkdir(parents=True, exist_ok=True)
        probed = Throughput(29e6, 10**9)
        (directory / FOUND).write_text(json.dumps(asdict(probed)))

    monkeypatch.setattr(study, "launch", launch)
    monkeypatch.setattr(study, "measure_throughput", probe)
    return titles


def plan(out, **changes):
    options = {"ranks": 2, "steps": 40, "seeds": 2, "learning_rate": 1e-4, "quick": False}
    return Study(out=out, **(options | changes))


def run(plan):
    return study.run_study(plan, "none", Console(quiet=True))[0]


def test_every_setting_is_a_method():
    for variant in VARIANTS:
        read_distributed(variant.method)
    assert len({variant.title for variant in VARIANTS}) == len(VARIANTS) == 13


def test_the_page_tells_the_five_parts_and_lays_its_figures_beside_it(made, tmp_path):
    page = run(plan(tmp_path))
    text = page.read_text(encoding="utf-8").partition("<script")[0]
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert [heading[:2] for heading in headings] == ["1.", "2.", "3.", "4.", "5.", "Ex"]
    assert "29.0 million float32 values a second" in text
    assert "31.25 million in theory" in text
    assert "do not compare with its" in text
    assert "With scale 1, the rule as first proposed, the threshold of dense1.weight went" in text
    for name in ("bottleneck", "waiting", "trend-sigma-1", "rule-test", "scale-threshold", "time"):
        assert f'id="chart-{name}"' in text
        assert (tmp_path / f"{name}.png").exists()
    assert (tmp_path / "distribution-sigma-2-gradient.svg").exists()
    if CHROMIUM is not None:
        assert try_out(page, tmp_path, DRAWN)["figures"] > 20


DRAWN = """
await until(() => document.documentElement.dataset.drawn === "yes");
tell({ figures: document.querySelectorAll(".chart svg").length });
"""


def test_finished_runs_are_not_repeated(made, undrawn, tmp_path):
    run(plan(tmp_path, seeds=1))
    first = len(made)
    assert first == len(VARIANTS)
    run(plan(tmp_path, seeds=1))
    assert len(made) == first
    run(plan(tmp_path))
    later = made[first:]
    assert {seed for _, seed in later} == {1}
    assert "unsent mean × 4" in {title for title, _ in later}
    assert "unsent mean × 1" not in {title for title, _ in later}


def test_what_was_cut_short_is_made_again_and_what_was_made_otherwise_is_kept(
    made, undrawn, tmp_path
):
    link = Loopback(2, "no rate asked for")
    one = plan(tmp_path, seeds=1)
    run(one)
    configs = one.runs(link)
    assert all(map(is_finished, configs))
    (tmp_path / "runs" / "sigma-1-seed-0" / "result.json").unlink()
    (tmp_path / "runs" / "sigma-2-seed-0" / "config.json").write_text("{")
    made.clear()
    run(one)
    assert made == [("1 σ, accumulating", 0), ("2 σ, accumulating", 0)]
    (tmp_path / "runs" / "plain-seed-0" / "result.json").write_text('{"workload": "mni')
    made.clear()
    run(one)
    assert made == [("plain DDP", 0)]
    made.clear()
    with pytest.raises(ValueError, match=r"finished run of other settings \(learning_rate 0.0001,"):
        run(plan(tmp_path, seeds=1, learning_rate=1e-3))
    assert made == []


def test_runs_of_an_earlier_call_are_not_counted(made, undrawn, tmp_path):
    run(plan(tmp_path, seeds=2))
    _, source = study.run_study(plan(tmp_path, seeds=1), "none", Console(quiet=True))
    assert {run.config["seed"] for run in source.runs} == {0}


def test_the_quick_study_leaves_rules_out(made, undrawn, tmp_path):
    run(plan(tmp_path, seeds=1, quick=True))
    assert 6 <= len(made) < len(VARIANTS)


def test_distributions_are_counted_where_the_original_did():
    whole = plan(Path("x"), steps=1000)
    assert whole.counted_at == COUNTED_AFTER
    assert plan(Path("x"), steps=500).counted_at == (0, 25, 100, 275, 475)
    counted = [config for config in whole.runs(Loopback(2, "")) if config.histograms_at]
    assert {config.seed for config in counted} == {0}
    assert "plain DDP" in {config.title for config in counted}


def test_the_originals_numbers_stand_beside_ours(made, undrawn, tmp_path):
    run(plan(tmp_path, seeds=1, steps=1000, quick=True))
    runs = read_source(tmp_path / "runs").runs
    headings, rows = original_table([[next(r for r in runs if r.title == "plain DDP")]], 1000)
    assert headings == ["accuracy", "original", "plain DDP"]
    assert rows[0] == ["training, step 51", "0.84", "0.8500"]
    assert rows[-1] == ["test, at the end", "0.9635", "0.9000"]


def test_failures_are_told_in_words(monkeypatch, tmp_path):
    def fail(*args):
        raise RunError("rank 1 ended with status 1")

    monkeypatch.setattr(study, "measure_throughput", fail)
    words = ["study", "mnist", "--link", "none", "--out"]
    outcome = CliRunner().invoke(app, [*words, str(tmp_path / "out")])
    assert outcome.exit_code == 1
    assert "rank 1 ended" in outcome.output
    (tmp_path / "file").write_text("")
    outcome = CliRunner().invoke(app, [*words, str(tmp_path / "file" / "out")])
    assert outcome.exit_code == 1
    assert "cannot write" in outcome.output
    outcome = CliRunner().invoke(app, ["study", "mnist", "--quick", "--steps", "50"])
    assert outcome.exit_code == 2
    assert "leave --steps and --seeds out" in outcome.output
    outcome = CliRunner().invoke(app, ["study", "mnist", "--link", "fast", "--out", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "not a rate" in outcome.output


def test_nothing_counted_has_no_deviation_and_nothing_beyond_it():
    empty = Histogram.from_json(
        {"bins": [0], "elements": 0, "total": 0.0, "square_sum": 0.0, "nonfinite": 0}
    )
    assert empty.deviation == empty.share_beyond(1) == 0
