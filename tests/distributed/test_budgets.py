"""Budgets between real ranks: all choose the same topology, and bytes follow."""

import statistics

import pytest
import torch
import torch.distributed as dist
from models import build, same_on_all_ranks, train, weights
from ranks import run_ranks
from torch import nn

import gradsieve as gs
from gradsieve.control.budget import BudgetSteering


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 800)
        self.two = nn.Linear(800, 40)
        self.three = nn.Linear(40, 5)

    def forward(self, x):
        return self.three(self.two(self.one(x).relu()).relu())


def steered_bytes(exchange):
    model = build(Wide)
    settings = {"exchange": exchange, "rotation": 0, "min_numel": 1}
    state = gs.attach(model, threshold=gs.Budget(bytes_per_step=6000), **settings)
    records = []
    state.on_step = records.append
    train(model, 60)
    scales = [None] * dist.get_world_size()
    dist.all_gather_object(scales, state.sieve.thresholds.scale)
    assert len(set(scales)) == 1
    assert state.state_dict()["scale"] == scales[0]

    again = build(Wide)
    resumed = gs.attach(again, threshold=gs.Budget(bytes_per_step=6000), **settings)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(state.state_dict())
    assert resumed.sieve.thresholds.scale == scales[0]
    return statistics.median(record.frame_bytes for record in records[-20:])


@pytest.mark.parametrize("exchange", ["gather", "two-shot"])
def test_frames_take_as_many_bytes_as_they_may(exchange):
    largest = max(run_ranks(2, steered_bytes, exchange))
    assert 4500 < largest < 7500


def unhindered():
    model = build(Wide)
    state = gs.attach(model, threshold=gs.Budget("auto"), rotation=0)
    scale = state.sieve.thresholds.scale
    train(model, 20)
    return scale, state.sieve.thresholds.scale


def test_auto_moves_on_all_ranks_alike():
    outcomes = run_ranks(2, unhindered)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == 1.0 != outcomes[0][1]


def stopped_early():
    """Stop and go on while thresholds are still low, on a link that is as it is expected."""
    with pytest.MonkeyPatch.context() as patch:
        # Times would differ from run to run, and thresholds with them.
        patch.setattr(BudgetSteering, "follow", lambda *report: None)
        settings = {"exchange": "gather", "rotation": 0, "min_numel": 1}

        def begin():
            model = build(Wide)
            state = gs.attach(model, **settings)
            state.sieve.thresholds.budget.scale = 3.0
            return model, state

        model, state = begin()
        records = []
        state.on_step = records.append
        train(model, 20)
        expected, residuals = weights(model), dict(state.residuals)
        assert records[0].density > 3 * records[-1].density > 0

        model, state = begin()
        train(model, 12)
        again = build(Wide)
        again.load_state_dict(model.state_dict())
        resumed = gs.attach(again, **settings)
        resumed.load_state_dict(state.state_dict())
        train(again, 8, first=12)
        assert torch.equal(weights(again), expected)
        assert all(torch.equal(resumed.residuals[name], r) for name, r in residuals.items())
        assert same_on_all_ranks(again)


def test_a_run_that_stops_while_it_spends_early_goes_on_exactly():
    run_ranks(2, stopped_early)
