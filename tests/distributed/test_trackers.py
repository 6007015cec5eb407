"""The callback that serves every tracker, with one of them."""

import json
import os
import sqlite3

import pytest
import torch.distributed as dist
from models import build, train
from ranks import run_ranks

import gradsieve as gs


def tracked(directory):
    os.environ |= {"TRACKIO_DIR": directory, "HF_HUB_OFFLINE": "1"}
    model = build()
    state = gs.attach(model, threshold=gs.Sigma(1), min_numel=100, exchange="gather", start_step=1)
    if dist.get_rank() == 0:
        import trackio

        trackio.init(project="mine")
        state.on_step = lambda record: trackio.log(record.scalars(), step=record.step)
    train(model, 3)
    if dist.get_rank() == 0:
        trackio.finish()
    return state.last.scalars()


def test_trackio_holds_the_scalars_of_every_step(tmp_path):
    pytest.importorskip("trackio")
    last, _ = run_ranks(2, tracked, str(tmp_path))
    with sqlite3.connect(tmp_path / "mine.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [0, 1, 2]
    assert "sieve/exposed_seconds" not in json.loads(rows[0][1])
    found = json.loads(rows[2][1])
    assert found == pytest.approx(last)
    names = ("sieve/density", "sieve/bits_per_parameter", "sieve/residual_norm")
    assert {*names, "threshold/one.weight", "density/two.weight"} <= found.keys()
