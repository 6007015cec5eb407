"""The account of a step, and where it is written."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from models import batch, build, train
from ranks import run_ranks

import gradsieve as gs


def records(path):
    model = build()
    settings = {"min_numel": 100, "start_step": 1}
    state = gs.attach(model, threshold=gs.Density(0.05), values="float32", **settings)
    seen = []
    lines = gs.JsonLines(path)

    def keep(record):
        assert record is state.last
        seen.append(record)
        lines(record)

    state.on_step = keep
    train(model, 4)
    lines.close()
    assert [record.step for record in seen] == [0, 1, 2, 3]
    elements = sum(p.numel() for p in model.parameters())
    pruned = {name: p.numel() for name, p in model.module.named_parameters() if p.numel() >= 100}
    for record in seen:
        assert record.frame_bytes > 0
        assert record.bits_per_parameter == pytest.approx(8 * record.frame_bytes / elements)
        assert record.nonfinite == 0
    for record in seen[1:]:
        assert set(record.thresholds) == set(record.densities) == set(pruned)
        survivors = sum(record.densities[name] * numel for name, numel in pruned.items())
        whole = elements - sum(pruned.values())
        assert record.density == pytest.approx((survivors + whole) / elements)
        stages = ("select", "encode", "exchange", "decode")
        seconds = [getattr(record, f"{stage}_seconds") for stage in stages]
        assert all(0 < second < 10 for second in seconds)
        assert 0 < record.exposed_seconds < 10
        assert 4 * whole + 4 * survivors <= record.frame_bytes <= 4 * whole + 8 * survivors + 1000
    assert seen[0].plain
    assert seen[0].exposed_seconds is None
    assert seen[0].frame_bytes == 4 * elements
    assert seen[0].residual_norm == 0
    norm = math.hypot(*(float(residual.norm()) for residual in state.residuals.values()))
    assert seen[-1].residual_norm == pytest.approx(norm, rel=1e-4)

    totals = state.totals
    assert totals.exchanges == {"gather": 3, "plain": 1}
    assert totals.frame_bytes == sum(record.frame_bytes for record in seen)
    mean = sum(record.bits_per_parameter for record in seen) / 4
    assert totals.bits_per_parameter == pytest.approx(mean)
    exposed = sum(1000 * record.exposed_seconds for record in seen[1:]) / 3
    assert str(totals).startswith("4 steps (3 gather, 1 plain), ")
    assert f"{mean:.2f} bits a parameter and step" in str(totals)
    assert json.loads(json.dumps(asdict(totals)))["exchanges"] == {"gather": 3, "plain": 1}
    large = gs.Totals({"dense": 1000}, frame_bytes=13_100_000_000)
    assert "13,100.0 MB of frames in all" in str(large)
    assert str(totals).endswith(f"the exchange added {exposed:.1f} ms to a step")

    residuals = state.residuals
    mine = residuals["one.weight"]
    mine.zero_()
    assert residuals["one.weight"].any()
    with pytest.raises(TypeError):
        residuals["one.weight"] = mine
    assert list(residuals) == [name for name, _ in model.module.named_parameters()]
    # What travels whole is exact with float32.
    assert not residuals["three.bias"].any()
    assert mine.shape == model.module.one.weight.shape
    assert mine.dtype is torch.float32
    state.on_step = None
    model(batch(9)).square().mean().backward()
    assert state.last.step == 4
    return [asdict(record) for record in seen]


def one_record(path):
    return records(path) if torch.distributed.get_rank() == 0 else records(f"{path}.1")


def test_a_record_a_step_and_readable_lines(tmp_path):
    seen, _ = run_ranks(2, one_record, str(tmp_path / "steps.jsonl"))
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == seen


def test_json_lines_have_null_for_what_json_cannot_say(tmp_path):
    path = tmp_path / "lines.jsonl"
    for _ in range(2):
        sink = gs.JsonLines(path)
        sink.write({"loss": math.nan, "deep": {"a": [1, math.inf, -math.inf]}, "word": "NaN"})
        sink.close()
    expected = {"loss": None, "deep": {"a": [1, None, None]}, "word": "NaN"}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [expected] * 2
