"""Infinities as a loss scaler meets them: the step is skipped and leaves nothing behind."""

import logging
import math

import pytest
import torch
import torch.distributed as dist
from models import Ledger, Net, batch, build, same_on_all_ranks, smaller_pieces, weights
from ranks import run_ranks
from torch import nn

import gradsieve as gs
from gradsieve.runtime import notices


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
        learned = {p.name: (p.threshold, p.moments) for p in state.sieve.parameters}
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
                assert torch.equal(residual, ledger.before[name]), name
            for parameter in state.sieve.parameters:
                assert learned[parameter.name] == (parameter.threshold, parameter.moments)
            assert state.last.nonfinite_parameters == {1: [where]}
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
    assert ledger.state.last.nonfinite_parameters == {1: [where]}
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
    # No rank had a gradient that was not finite.
    assert state.last.nonfinite_parameters == {}
    assert state.residuals["weight"].min() == state.residuals["weight"].max() == 6e4


def test_a_sum_beyond_float16_leaves_the_residual_as_it_was():
    run_ranks(2, accumulate_beyond_float16)


def train_scaled(model, state, scaler, steps, poison=None):
    """Sums of what the optimizer gets and of what it would get from plain DDP, unscaled."""
    plain = build(Net, gradient_as_bucket_view=True)
    plain.module.load_state_dict(model.module.state_dict())
    got, wanted = torch.zeros_like(weights(model)), torch.zeros_like(weights(model))
    largest = 0.0
    for step in range(steps):
        model.zero_grad()
        plain.zero_grad()
        plain(batch(step)).square().mean().backward()
        scaler.scale(model(batch(step)).square().mean()).backward()
        if poison is not None:
            poison(step)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]) / scaler.get_scale()
        if gradient.isfinite().all():
            got += gradient
            wanted += torch.cat([p.grad.flatten() for p in plain.parameters()])
            largest = max(largest, float(gradient.abs().max()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler.step(optimizer)
        scaler.update()
    return got, wanted, largest


def owed(state):
    """On average over the ranks, with what owners of sums keep."""
    names = [parameter.name for parameter in state.sieve.parameters]
    # A node's ranks keep a piece each, for all of them.
    sizes = [parameter.dealt.size if parameter.dealt else 1 for parameter in state.sieve.parameters]
    kept = torch.cat(
        [size * state.residuals[name].flatten() for name, size in zip(names, sizes, strict=True)]
    )
    own = state.owned_residuals
    zero = {parameter.name: torch.zeros(parameter.shape) for parameter in state.sieve.parameters}
    sums = torch.cat([own.get(name, zero[name]).flatten() for name in names])
    total = kept / dist.get_world_size() + sums
    dist.all_reduce(total)
    return total


def infinite_at(steps, model, where="one.weight"):
    """Multiply an element of rank 0's gradient by infinity in some steps."""
    now = {"step": -1}

    def count(module, inputs):
        now["step"] += 1

    def poison(gradient):
        if now["step"] in steps and dist.get_rank() == 0:
            gradient = gradient.clone()
            gradient.view(-1)[0] = math.inf
        return gradient

    model.register_forward_pre_hook(count)
    model.module.get_parameter(where).register_hook(poison)


def nothing_is_lost_under_a_scale_that_moves():
    """Law 1 in units without the scale, where it doubles every 3 steps and is halved at skips."""
    smaller_pieces()
    for exchange in ("gather", "two-shot", "hierarchical"):
        for values, rotation in (("levels", 0), ("bfloat16", 0), ("float32", 16)):
            model = build()
            # Beside powers of two, factors that round.
            scaler = torch.amp.GradScaler(
                "cpu", init_scale=2.0**16, growth_interval=3, growth_factor=2.0 + (rotation > 0)
            )
            state = gs.attach(
                model,
                threshold=gs.Sigma(2.0),
                values=values,
                rotation=rotation,
                min_numel=100,
                exchange=exchange,
                node_size=2,
                scaler=scaler,
            )
            infinite_at({0, 1, 5, 9}, model)
            got, wanted, largest = train_scaled(model, state, scaler, 16)
            error = (got + owed(state) - wanted).abs().max()
            assert error < (1e-5 if rotation else 2e-6) * largest * 16, (exchange, values)
            assert state.last.loss_scale == scaler.get_scale() / scaler.get_growth_factor()
            residual = math.hypot(*(float(r.norm()) for r in state.residuals.values()))
            assert math.isclose(state.last.residual_norm, residual, rel_tol=1e-3)
        state.exchange = "dense"
        got, wanted, largest = train_scaled(model, state, scaler, 1)
        assert not owed(state).any()


def skips_at_the_start():
    """The first step that is taken is plain DDP's, whether or not the scaler is told."""
    for told in (True, False):
        for threshold in (gs.Fixed(0.0), gs.Sigma(2.0)):
            model = build()
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
            settings = {"values": "float32", "min_numel": 100, "scaler": scaler if told else None}
            state = gs.attach(model, threshold=threshold, **settings)
            infinite_at(range(8), model)
            train_scaled(model, state, scaler, 8)
            assert scaler.get_scale() == 2.0**8
            assert all(not residual.any() for residual in state.residuals.values())
            got, wanted, largest = train_scaled(model, state, scaler, 1)
            if threshold == gs.Fixed(0.0):
                assert (got - wanted).abs().max() < 1e-6 * largest
            assert got.abs().max() <= 1.001 * wanted.abs().max()


def a_threshold_in_units_without_the_scale():
    densities = []
    for scale in (1.0, 2.0**16):
        model = build()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        state = gs.attach(model, threshold=gs.Fixed(0.002), min_numel=100, scaler=scaler)
        train_scaled(model, state, scaler, 3)
        assert state.last.thresholds["two.weight"] == 0.002
        densities.append(state.last.densities)
    assert densities[0] == densities[1]


def told_once():
    """Without the scaler a jump of all gradients is named, and ordinary steps are not."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    notices.logger.addHandler(handler)
    for interval, skips, expected in ((1000, set(), 0), (4, set(), 1), (1000, {5}, 1)):
        notices._told.clear()
        seen.clear()
        model = build()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=interval)
        state = gs.attach(model, threshold=gs.Sigma(2.0), min_numel=100)
        infinite_at(skips, model)
        train_scaled(model, state, scaler, 12)
        assert sum("scaler=scaler" in text for text in seen) == expected, seen
    with pytest.raises(TypeError, match="get_scale"):
        gs.attach(build(), scaler=2.0**16)


class Constant(nn.Module):
    """Every element has the gradient 100."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3000))

    def forward(self):
        return 100 * self.weight.sum()


def an_average_beyond_float32():
    """What residuals send at once, times the scale, may leave float32 where no gradient does."""
    for exchange in ("gather", "two-shot"):
        model = build(Constant)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1000)
        state = gs.attach(model, threshold=gs.Fixed(250.0), exchange=exchange, scaler=scaler)
        taken, steps = 0.0, 0
        for _ in range(6):
            model.zero_grad()
            scaler.scale(model()).backward()
            gradient = model.module.weight.grad / scaler.get_scale()
            if gradient.isfinite().all():
                taken, steps = taken + float(gradient[0]), steps + 1
            scaler.step(torch.optim.SGD(model.parameters(), lr=0.0))
            scaler.update()
        assert steps == 5
        kept = owed(state)
        assert torch.allclose(taken + kept, torch.full_like(kept, 100.0 * steps), rtol=1e-5)


def a_scale_that_moves():
    an_average_beyond_float32()
    nothing_is_lost_under_a_scale_that_moves()
    skips_at_the_start()
    a_threshold_in_units_without_the_scale()
    told_once()


def test_a_loss_scale_that_moves_changes_no_units():
    run_ranks(2, a_scale_that_moves)
