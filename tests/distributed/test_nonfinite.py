"""Infinities as a loss scaler meets them: the step is skipped, and nothing is lost or poisoned."""

import math

import pytest
import torch
import torch.distributed as dist
from models import Ledger, batch, build, same_on_all_ranks, smaller_pieces
from ranks import run_ranks
from torch import nn

import gradsieve as gs


def overflow_on_rank_one(elements):
    """Multiply some elements of rank 1's gradient by infinity in step 2."""
    rank, now = dist.get_rank(), {"step": 0}

    def poison(gradient):
        if rank == 1 and now["step"] == 2:
            gradient = gradient.clone()
            gradient.view(-1)[elements] = math.inf
        return gradient

    return poison, now


def train_through_overflow(where, elements, policy, exchange):
    model = build()
    poison, now = overflow_on_rank_one(elements)
    model.module.get_parameter(where).register_hook(poison)
    ledger = Ledger(model, threshold=policy, min_numel=100, exchange=exchange)
    state = ledger.state
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Powers of two scale exactly.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    for step in range(6):
        now["step"] = step
        ledger.open()
        optimizer.zero_grad()
        scaler.scale(model(batch(step)).square().mean()).backward()
        if step != 2:
            ledger.check()
            assert state.last.nonfinite == 0
        else:
            # On every rank, whichever it came from.
            assert not model.module.get_parameter(where).grad.isfinite().all()
            mine = ledger.gradients[where]
            assert state.last.nonfinite == int((~mine.isfinite()).sum())
            assert (state.last.nonfinite > 0) == (dist.get_rank() == 1)
            for name, residual in state.residuals.items():
                gradient = ledger.gradients[name]
                gradient = torch.where(gradient.isfinite(), gradient, 0.0)
                assert torch.equal(residual, ledger.before[name] + gradient), name
            for name, owned in state.owned_residuals.items():
                assert torch.equal(owned, ledger.owned_before[name]), name
            norm = math.hypot(*(float(r.norm()) for r in state.residuals.values()))
            assert math.isclose(state.last.residual_norm, norm, rel_tol=1e-4)
        scaler.step(optimizer)
        scaler.update()
        assert all(residual.isfinite().all() for residual in state.residuals.values())
        assert all(p.isfinite().all() for p in model.parameters())
        assert same_on_all_ranks(model)
        assert scaler.get_scale() == (2.0**7 if step >= 2 else 2.0**8)
        assert step < 2 or state.last.density < 0.9


def overflow_in_a_dense_step(where):
    """The residuals that it has sent come back, whichever bucket overflows."""
    model = build(bucket_cap_mb=0.001)
    poison, now = overflow_on_rank_one(slice(0, 1))
    model.module.get_parameter(where).register_hook(poison)
    ledger = Ledger(model, threshold=gs.Density(0.05), min_numel=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        now["step"] = step
        ledger.step(optimizer, batch(step))
    now["step"], ledger.state.exchange = 2, "dense"
    ledger.open()
    model(batch(2)).square().mean().backward()
    assert not model.module.get_parameter(where).grad.isfinite().all()
    for name, residual in ledger.state.residuals.items():
        assert torch.equal(residual, ledger.before[name]), name
    now["step"] = 3
    ledger.step(optimizer, batch(3))


@pytest.mark.parametrize("where", ["two.weight", "three.bias"])
def test_an_overflow_in_a_dense_step_takes_no_residual_with_it(where):
    run_ranks(2, overflow_in_a_dense_step, where)


def overflows(exchange):
    smaller_pieces()
    for policy in (gs.Density(0.05), gs.UnsentMean(4.0), gs.Sigma(2.0)):
        train_through_overflow("two.weight", slice(3, 5), policy, exchange)
        train_through_overflow("one.weight", slice(None), policy, exchange)
        # A parameter that travels whole.
        train_through_overflow("three.bias", slice(0, 1), policy, exchange)


@pytest.mark.parametrize("exchange", ["gather", "two-shot"])
def test_an_overflow_on_one_rank_skips_the_step_on_all_and_loses_nothing(exchange):
    run_ranks(3, overflows, exchange)


class Scaled(nn.Module):
    """Every element has the gradient 60,000: in float16, but not twice that."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3000, dtype=torch.float16))

    def forward(self):
        return (self.weight * torch.tensor(6e4, dtype=torch.float16)).sum()


def accumulate_beyond_float16():
    model = build(Scaled)
    state = gs.attach(model, threshold=gs.Fixed(1e5))
    model().backward()
    assert state.residuals["weight"].max() == 6e4
    model.zero_grad()
    model().backward()
    assert model.module.weight.grad.isinf().all()
    # Whoever skips this step must find in the residual what did not fit.
    assert state.residuals["weight"].min() == 12e4


def test_a_sum_beyond_float16_stays_in_the_residual():
    run_ranks(2, accumulate_beyond_float16)
