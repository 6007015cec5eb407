"""Runs that are played in one process: how they are kept, compared and drawn."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from gradsieve.lab.bench.rate.labels import WIDTH, Frame, placed
from gradsieve.lab.bench.rate.names import TASKS, UNITS, method_name
from gradsieve.lab.bench.rate.picture import draw, drawn_points
from gradsieve.lab.bench.rate.play import PlayedRun, Setting, play
from gradsieve.lab.bench.rate.rows import comparisons, summarize
from gradsieve.lab.bench.rate.runs import RunFile
from gradsieve.lab.bench.rate.tables import rate_tables
from gradsieve.lab.workloads.workload import WORKLOADS, load_workload

SETTING = Setting(
    workload="gpt-small", method="sieve:density=0.05", learning_rate=1e-3, seed=3, steps=2, ranks=2
)


@pytest.fixture(scope="module")
def run():
    return play_on_one_thread(SETTING)


def play_on_one_thread(setting):
    """On several, torch's own training may differ in its last places from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return play(setting)
    finally:
        torch.set_num_threads(before)


def test_a_run_is_the_same_again(run):
    again = play_on_one_thread(SETTING)
    assert replace(again, seconds=0.0) == replace(run, seconds=0.0)
    assert [step for step, _ in run.curve] == [1, 2]
    assert 0.1 < run.bits_per_parameter < 1.5


def test_a_finished_run_is_kept_and_found(run, tmp_path):
    file = RunFile(tmp_path / "of" / "runs.jsonl")
    assert file.find(SETTING) is None
    file.append(run)
    file.append(replace(run, seed=4))
    assert file.find(SETTING) == run
    assert file.find(replace(SETTING, seed=5)) is None
    file.path.write_text(file.path.read_text() + "{}\n")
    with pytest.raises(ValueError, match="line 3 is no finished run"):
        list(file)


def made(method, learning_rate, seed, quality, bits):
    setting = replace(SETTING, method=method, learning_rate=learning_rate, seed=seed)
    return PlayedRun(
        **asdict(setting),
        bits_per_parameter=bits,
        quality=quality,
        curve=[[2, quality]],
        seconds=1.0,
        torch="2",
    )


def test_seeds_are_averaged_and_the_best_learning_rate_is_marked(tmp_path):
    runs = [
        made("dense", 1e-3, 0, 1.7, 32.0),
        made("dense", 1e-3, 1, 1.9, 32.0),
        made("dense", 2e-3, 0, 1.8, 32.0),
        made("dense", 2e-3, 1, 1.7, 32.0),
        made("dense", 3e-3, 0, 1.6, 32.0),
        made("sieve:density=0.1", 1e-3, 0, 2.0, 0.7),
    ]
    rows = summarize(runs)
    assert [(r.method, r.learning_rate, r.seeds, r.own_rate, r.best) for r in rows] == [
        ("dense", 1e-3, 2, True, False),
        # A single run is no match for the mean of two.
        ("dense", 2e-3, 2, False, True),
        ("dense", 3e-3, 1, False, False),
        ("sieve:density=0.1", 1e-3, 1, True, True),
    ]
    assert rows[0].quality == pytest.approx(1.8)
    assert (rows[0].lowest, rows[0].highest) == (1.7, 1.9)
    (table,) = rate_tables(rows)
    assert table.row_count == 4
    for ending in ("png", "svg"):
        draw(rows, tmp_path / f"rate.{ending}")
        assert (tmp_path / f"rate.{ending}").stat().st_size > 2000
    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "rate.png").stat().st_size < 200_000
    picture = (tmp_path / "rate.svg").read_text()
    assert "A transformer of 1 M parameters, 2 steps on 2 ranks" in picture
    assert "held-out loss, nats per byte (lower is better)" in picture
    assert "dense training, 32 bits" in picture
    assert "gradsieve, every step" in picture
    assert "density=0.1" not in picture


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("fp16", "fp16"),
        ("powersgd:4", "PowerSGD"),
        ("topk:0.01", "top-k"),
        ("sieve:balanced-sigma=1,rotation=256", "gradsieve, every step"),
        ("local:every=20,balanced-sigma=1,start_step=200,start=sieve", "gradsieve, local steps"),
        ("local:every=10,exchange=dense,lr=0.7,momentum=0.5", "DiLoCo"),
        ("local:every=10,exchange=dense,lr=1,momentum=0", "local SGD"),
        ("local:every=10,exchange=dense,lr=1,momentum=0,start_step=200", "post-local SGD"),
        ("post-local:every=10", "post-local SGD"),
        ("sparseloco:every=15,k=256", "SparseLoCo"),
        ("demo:k=8", "DeMo"),
        ("muloco:bits=2", "MuLoCo"),
        # Nobody can train with these.
        ("local:every=20,balanced-sigma=1,residual_decay=0.9", None),
        ("sieve-model:sigma=1,rotation=256", None),
    ],
)
def test_a_method_is_drawn_by_its_name(method, name):
    assert method_name(method) == name


def test_the_frontier_holds_what_no_setting_with_as_few_bits_beats():
    runs = [
        made("powersgd:1", 1e-3, 0, 2.2, 0.6),
        made("powersgd:2", 1e-3, 0, 2.3, 0.9),
        made("powersgd:4", 1e-3, 0, 2.0, 1.6),
        made("topk:0.01", 1e-3, 0, 2.5, 0.9),
    ]
    points = drawn_points(summarize(runs), higher_is_better=False)
    assert {point["method"] for point in points if not point["frontier"]} == {"powersgd:2"}
    points = drawn_points(summarize(runs), higher_is_better=True)
    assert {point["method"] for point in points if not point["frontier"]} == {"powersgd:4"}


MUON = "gpt-small:optimizer=muon"


def test_optimizers_share_a_panel_and_have_tables_of_their_own(tmp_path):
    with_adamw = [
        made("dense", 2e-3, 0, 1.6, 32.0),
        made("sieve:sigma=1", 2e-3, 0, 1.7, 0.7),
        made("local:every=9,sigma=1", 2e-3, 0, 1.8, 0.1),
        made("muloco:bits=2", 2e-3, 0, 1.75, 0.1),
        replace(made("sparseloco", 2e-3, 0, 1.9, 0.01), bits_at_entropy=0.006),
    ]
    with_muon = [replace(run, workload=MUON, quality=run.quality - 0.4) for run in with_adamw]
    rows = summarize([*with_adamw, *with_muon])
    assert list(comparisons(rows)) == [("gpt-small", 2, 2)]
    first, second = rate_tables(rows)
    assert first.title.startswith("gpt-small: held-out loss")
    assert second.title.startswith(f"{MUON}: held-out loss")
    cells = list(first.columns[3].cells)
    assert cells == ["32.000", "0.700", "0.100", "0.100", "0.0100 (0.0060)"]
    assert "positions at their entropy" in first.caption
    points = drawn_points(rows, higher_is_better=False, together=True)
    assert {(point["name"], point["shape"]) for point in points} == {
        ("gradsieve", "circle"),
        ("gradsieve, Muon", "triangle-up"),
        ("DiLoCo in few bits", "circle"),
        ("MuLoCo", "triangle-up"),
        ("SparseLoCo", "circle"),
        ("SparseLoCo, Muon", "triangle-up"),
    }
    draw(rows, tmp_path / "frontier.svg", together=True, least_bits=0.003)
    picture = (tmp_path / "frontier.svg").read_text()
    for words in (
        "dense training with AdamW, 32 bits",
        "dense training with Muon, 32 bits",
        "gradsieve, Muon",
        "Hollow: the same",
        "Triangles: trained with Muon",
    ):
        assert words in picture


def test_a_picture_without_positions_or_muon_says_nothing_of_them(tmp_path):
    rows = summarize([made("dense", 2e-3, 0, 1.6, 32.0), made("fp16", 2e-3, 0, 1.6, 16.0)])
    draw(rows, tmp_path / "rate.svg")
    picture = (tmp_path / "rate.svg").read_text()
    assert "Hollow" not in picture
    assert "Triangles" not in picture


def test_names_cover_no_point_and_each_other_neither():
    runs = [
        made("dense", 1e-3, 0, 1.62, 32.0),
        *(made(f"sieve:sigma={k}", 1e-3, 0, 1.6 + k / 10, 1 / k) for k in (1, 2, 3, 4)),
        *(made(f"powersgd:{k}", 1e-3, 0, 2.02 - k / 10, k / 4.1) for k in (1, 2, 3, 4)),
        made("topk:0.1", 1e-3, 0, 1.9, 0.3),
        made("8-bit", 1e-3, 0, 1.62, 39.0),
    ]
    points = drawn_points(summarize(runs), higher_is_better=False)
    frame = Frame((0.1, 40.0), (1.5, 2.1))
    boxes = placed(points, [1.62], frame)
    assert boxes.keys() == {"gradsieve, every step", "PowerSGD", "top-k", "8-bit"}
    marks = [frame.place(point["bits_per_parameter"], point["quality"]) for point in points]
    for name, box in boxes.items():
        assert not any(box.holds(mark) for mark in marks), name
        assert not any(box.meets(other) for key, other in boxes.items() if key != name)
        assert box.left >= 0
        assert box.right <= WIDTH


def test_every_workload_has_a_title():
    assert TASKS.keys() == WORKLOADS.keys()
    assert {load_workload(name).metric_name for name in WORKLOADS} == UNITS.keys()


def test_lower_loss_and_higher_accuracy_are_better():
    runs = [made("dense", rate, 0, quality, 32.0) for rate, quality in ((1e-3, 0.7), (3e-3, 0.9))]
    assert [row.best for row in summarize(runs)] == [True, False]
    accuracies = [replace(run, workload="mnist_cnn") for run in runs]
    assert [row.best for row in summarize(accuracies)] == [False, True]


def test_lines_are_json(run, tmp_path):
    file = RunFile(tmp_path / "runs.jsonl")
    file.append(run)
    assert json.loads(file.path.read_text())["method"] == "sieve:density=0.05"


def test_runs_of_other_numbers_of_ranks_are_not_compared():
    two = made("dense", 1e-3, 0, 1.7, 32.0)
    rows = summarize([two, replace(two, ranks=4, quality=1.6)])
    assert [row.best for row in rows] == [True, True]
    assert [list(group) for group in comparisons(rows)] == [
        ["gpt-small", 2, 2],
        ["gpt-small", 2, 4],
    ]


LOCAL = replace(SETTING, method="local:every=2,exchange=dense,lr=1,momentum=0", steps=5)


def test_averaging_weights_in_every_step_of_sgd_is_synchronous_training(monkeypatch):
    workload = load_workload("gpt-small")
    by_sgd = replace(workload, make_optimizer=lambda m, lr: torch.optim.SGD(m.parameters(), lr))
    monkeypatch.setattr("gradsieve.lab.bench.rate.play.load_workload", lambda name: by_sgd)
    every_step = replace(LOCAL, method="local:every=1,exchange=dense,lr=1,momentum=0", steps=3)
    synchronous = play(replace(every_step, method="dense"))
    assert play(every_step).quality == pytest.approx(synchronous.quality, rel=1e-4)


def test_local_steps_send_once_in_a_while():
    run = play(LOCAL)
    # After the second and fourth step, and at the end.
    assert run.bits_per_parameter == pytest.approx(32 * 3 / 5)
    pruned = play(replace(LOCAL, method="local:every=2,density=0.01,fragments=2,delay=1"))
    assert 0.01 < pruned.bits_per_parameter < 0.5
    assert pruned.quality < 5.6


def test_local_steps_may_begin_after_synchronous_ones():
    synchronous = play(replace(LOCAL, method="dense", steps=2))
    warm = play(replace(LOCAL, method="local:every=9,exchange=dense,start_step=2", steps=2))
    assert warm.quality == synchronous.quality
    assert warm.bits_per_parameter == 32
    pruned = play(replace(LOCAL, method="local:density=0.1,start_step=2,start=sieve", steps=2))
    assert pruned.bits_per_parameter < 2
    longer = play(replace(LOCAL, method="local:every=2,exchange=dense,start_step=1", steps=3))
    assert longer.bits_per_parameter == pytest.approx(32 * 2 / 3)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("local", "a budget"),
        ("local:every=0,sigma=1", "every must be 1 or more"),
        ("local:every=x,sigma=1", "invalid literal"),
        ("local:every=4,delay=5,sigma=1", "delay must be between 0 and 4"),
        ("local:often=4,sigma=1", "write POLICY=NUMBER.* or one of every, delay"),
        ("local:every=2-9,sigma=1", "invalid literal"),
        ("local:sigma=1,ramp_steps=5", "no ramp_steps"),
        ("local:sigma=1:sigma=2", "write one of"),
        ("local:sigma=1,residual_decay=2", "residual_decay must be between 0 and 1"),
    ],
)
def test_local_steps_that_are_written_otherwise_are_named(method, words):
    with pytest.raises(ValueError, match=words):
        play(replace(LOCAL, method=method))
