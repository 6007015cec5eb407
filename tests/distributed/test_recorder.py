"""What a Recorder writes in training on real ranks."""

import math
import os
import signal
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import build, train
from ranks import run_ranks

import gradsieve as gs
from gradsieve.recording.files import HISTOGRAMS, RECORDS, read_lines, read_run, read_steps
from gradsieve.recording.histogram import Histogram

SETTINGS = {"values": "float32", "min_numel": 100, "exchange": "gather"}


def histograms(directory):
    lines = [line for line in read_lines(Path(directory) / HISTOGRAMS) if "histograms" in line]
    return {line["step"]: line for line in lines}


def counted(line, what, name):
    return Histogram.from_json(line["histograms"][what][name])


def squares(tensor):
    return float(tensor.detach().double().square().sum())


def record(out, steps=5):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), **SETTINGS)
    recorder = gs.Recorder(
        state, model, out, histograms_every=2, tensorboard=False, about={"title": "mine"}
    )
    recorder.log(before=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, truth = [], {}
    for step in range(steps):
        weight = squares(model.module.one.weight)
        train(model, 1, first=step, optimizer=optimizer)
        truth[step] = (weight, squares(state.residuals["one.weight"]))
        recorder.log(loss=torch.tensor(1.0 / (step + 1)))
        recorder.log(accuracy=step)
        seen.append(state.last)
    recorder.close()
    return seen, truth


def test_records_metrics_and_histograms_of_all_ranks(tmp_path):
    (seen, mine), (_, theirs) = run_ranks(2, record, str(tmp_path))
    heading, _ = read_run(tmp_path / RECORDS)
    assert heading["ranks"] == 2
    assert heading["about"] == {"title": "mine"}
    assert heading["parameters"]["one.weight"] == 800
    lines = read_steps(tmp_path / RECORDS)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["accuracy"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[1]["loss"] == 0.5
    assert [line.get("before") for line in lines] == [7, None, None, None, None]
    assert lines[2]["thresholds"] == seen[2].thresholds

    found = histograms(tmp_path)
    assert sorted(found) == [0, 2, 4]
    for step, line in found.items():
        assert line["ranks"] == 2
        weights = counted(line, "weight", "one.weight")
        assert weights.elements == 800
        assert weights.square_sum == pytest.approx(mine[step][0])
        residuals = counted(line, "residual", "one.weight")
        assert residuals.elements == 1600
        assert 0 < residuals.square_sum == pytest.approx(mine[step][1] + theirs[step][1])
        assert set(line["histograms"]["gradient"]) == set(heading["parameters"])
        assert "one.bias" not in line["histograms"]["accumulated"]
    first = found[0]
    one = counted(first, "gradient", "one.weight"), counted(first, "accumulated", "one.weight")
    assert (one[0].counts == one[1].counts).all(), "nothing was kept before the first step"
    later = counted(found[2], "accumulated", "one.weight")
    assert (later.counts != counted(found[2], "gradient", "one.weight").counts).any()


def record_plainly(out):
    model = build()
    first = squares(model.module.two.weight)
    recorder = gs.Recorder(None, model, out, histograms_every=lambda step: step < 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sums = []
    for step in range(3):
        train(model, 1, first=step, optimizer=optimizer)
        recorder.log(loss=step)
        sums.append(squares(model.module.two.weight.grad))
    recorder.close()
    later = gs.Recorder(None, model, out, first_step=3, histograms_every=0)
    later.log(loss=3)
    later.close()
    return first, sums


def test_a_run_without_the_sieve_is_recorded_alike(tmp_path):
    (first, sums), _ = run_ranks(2, record_plainly, str(tmp_path))
    assert read_steps(tmp_path / RECORDS) == [{"step": n, "loss": n} for n in range(4)]
    found = histograms(tmp_path)
    assert sorted(found) == [0, 1]
    assert counted(found[0], "weight", "two.weight").square_sum == pytest.approx(first)
    gradient = counted(found[1], "gradient", "two.weight")
    assert gradient.elements == 2 * 1200
    assert gradient.square_sum == pytest.approx(2 * sums[1])


def record_on_first_rank_alone(out):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), **SETTINGS)
    recorder = None
    if dist.get_rank() == 0:
        recorder = gs.Recorder(state, model, out, histograms_every=1, tensorboard=False)
    train(model, 3)
    if recorder is not None:
        recorder.close()


def test_a_recorder_on_one_rank_alone_makes_nobody_wait(tmp_path):
    run_ranks(2, record_on_first_rank_alone, str(tmp_path))
    assert len(read_steps(tmp_path / RECORDS)) == 3
    assert {line["ranks"] for line in histograms(tmp_path).values()} == {1}


def killed_in_mid_run(out):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), **SETTINGS)
    recorder = gs.Recorder(state, model, out, tensorboard=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        train(model, 1, first=step, optimizer=optimizer)
        recorder.log(loss=step)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_loses_no_more_than_the_last_step(tmp_path):
    run_ranks(1, killed_in_mid_run, str(tmp_path))
    assert [line["loss"] for line in read_steps(tmp_path / RECORDS)] == [0, 1, 2]


def trained_beside_an_unwritable_directory(out):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), **SETTINGS)
    recorder = gs.Recorder(state, model, out, histograms_every=1)
    train(model, 3)
    recorder.log(loss=1)
    recorder.close()
    return state.step


def test_training_goes_on_where_nothing_can_be_written(tmp_path):
    blocked = tmp_path / "out"
    blocked.write_text("a file")
    assert run_ranks(2, trained_beside_an_unwritable_directory, str(blocked)) == [3, 3]


def freed_after_use(out):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), **SETTINGS)
    recorder = gs.Recorder(state, model, out, tensorboard=False)
    train(model, 1)
    recorder.close()
    assert state.observers == []
    watched = weakref.ref(model.module)
    del model, recorder, state
    import gc

    gc.collect()
    return watched() is None


def test_a_recorder_keeps_nothing_alive(tmp_path):
    assert run_ranks(1, freed_after_use, str(tmp_path)) == [True]


def record_an_unbound_state(out):
    model = build()
    state = gs.SieveState(threshold=gs.Sigma(1), **SETTINGS)
    model.register_comm_hook(state, gs.sieve_hook)
    recorder = gs.Recorder(state, model, out, histograms_every=1, tensorboard=False)
    train(model, 3)
    recorder.close()


def test_a_state_that_was_never_bound_is_recorded_by_numbers(tmp_path):
    run_ranks(2, record_an_unbound_state, str(tmp_path))
    assert len(read_steps(tmp_path / RECORDS)) == 3
    last = histograms(tmp_path)[2]["histograms"]
    assert set(last["weight"]) == set(last["gradient"]) == {str(n) for n in range(6)}


def record_other_topologies(out):
    for exchange in ("two-shot", "hierarchical"):
        model = build()
        state = gs.attach(
            model, threshold=gs.Sigma(1), node_size=2, **(SETTINGS | {"exchange": exchange})
        )
        recorder = gs.Recorder(
            state, model, f"{out}/{exchange}", histograms_every=1, tensorboard=False
        )
        train(model, 2)
        recorder.close()


def test_what_other_topologies_keep(tmp_path):
    run_ranks(4, record_other_topologies, str(tmp_path))
    (_, last) = histograms(tmp_path / "two-shot").values()
    assert counted(last, "accumulated", "one.weight").elements == 4 * 800
    (_, last) = histograms(tmp_path / "hierarchical").values()
    assert "accumulated" not in last["histograms"]
    # Of two nodes, each of whose ranks keep a piece each.
    assert counted(last, "residual", "one.weight").elements == 2 * 800


def refused(out):
    model = build()
    state = gs.attach(model, **SETTINGS)
    for wrong in ({"histograms_every": None}, {"histograms_every": 50.0}, {"sample": 1e6}):
        with pytest.raises(TypeError):
            gs.Recorder(state, model, out, **wrong)
    for options in ({"histograms_every": -1}, {"sample": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            gs.Recorder(state, model, out, **options)
    with pytest.raises(TypeError, match="JSON"):
        gs.Recorder(state, model, out, about={"model": model})
    recorder = gs.Recorder(state, model, out, tensorboard=False)
    for name in ("step", "density"):
        with pytest.raises(ValueError, match=f"log: {name} would replace"):
            recorder.log(**{name: 1})
    for value in ("much", None, torch.ones(2)):
        with pytest.raises(TypeError, match="log: loss must be a number"):
            recorder.log(loss=value)
    recorder.close()
    assert not Path(out).exists()


def test_numbers_out_of_range_are_refused(tmp_path):
    run_ranks(2, refused, str(tmp_path / "none"))


def seen_on_a_rotated_model(out):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), rotation=16, **SETTINGS)
    recorder = gs.Recorder(state, model, out, histograms_every=1, tensorboard=False)
    train(model, 2)
    recorder.close()


def test_coefficients_of_rotated_matrices_are_no_accumulated_gradients(tmp_path):
    run_ranks(2, seen_on_a_rotated_model, str(tmp_path))
    (_, last) = histograms(tmp_path).values()
    assert set(last["histograms"]) == {"weight", "gradient", "residual"}


def written_events(out):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), **SETTINGS)
    recorder = gs.Recorder(state, model, out, histograms_every=2, tensorboard=True)
    for step in range(3):
        train(model, 1, first=step)
        recorder.log(loss=step / 2)
    recorder.close()
    return state.last


def events_on_a_full_disk(out):
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), **SETTINGS)
    recorder = gs.Recorder(state, model, out, tensorboard=True)
    if dist.get_rank() == 0:
        recorder._board._open = failing
    train(model, 3)
    recorder.close()
    return state.step


def failing(directory):
    raise RuntimeError("the quota is used up")


def test_events_that_cannot_be_written_end_no_training(tmp_path):
    pytest.importorskip("tensorboard")
    assert run_ranks(2, events_on_a_full_disk, str(tmp_path)) == [3, 3]
    assert len(read_steps(tmp_path / RECORDS)) == 3


def test_tensorboard_reads_scalars_and_histograms(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    last, _ = run_ranks(2, written_events, str(tmp_path))
    everything = {"tensors": 0, "scalars": 0, "histograms": 0}
    events = event_accumulator.EventAccumulator(str(tmp_path), size_guidance=everything)
    events.Reload()
    tags = events.Tags()
    for tag in ("sieve/density", "sieve/exposed_seconds", "threshold/one.weight", "loss"):
        assert tag in tags["scalars"]
    assert [event.value for event in events.Scalars("loss")] == [0, 0.5, 1]
    threshold = events.Scalars("threshold/one.weight")[-1]
    assert threshold.step == 2
    assert threshold.value == pytest.approx(last.thresholds["one.weight"])
    assert "residual/two.weight" in tags["histograms"]
    first, second = events.Histograms("gradient/one.weight")
    assert (first.step, second.step) == (0, 2)
    histogram = second.histogram_value
    line = histograms(tmp_path)[2]
    found = counted(line, "gradient", "one.weight")
    assert histogram.num == found.elements == sum(histogram.bucket)
    assert histogram.sum_squares == pytest.approx(found.square_sum)
    assert math.isclose(histogram.bucket_limit[-1], histogram.max)
