"""The sieve in the optimizer's units: laws hold, ranks agree, what counts is what is sent."""

import pytest
import torch
import torch.distributed as dist
from models import Crossed, Ledger, batch, build, same_on_all_ranks
from ranks import run_ranks

import gradsieve as gs
from gradsieve.metric import LOWEST, OptimizerMetric


def in_the_optimizers_units():
    for values in ("levels", "bfloat16", "float32"):
        for policy in (gs.Density(0.1), gs.UnsentMean(4.0), gs.Sigma(1.0)):
            model = build(Crossed)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            ledger = Ledger(
                model, threshold=policy, values=values, optimizer=optimizer, min_numel=100
            )
            for step in range(5):
                ledger.step(optimizer, batch(step))
                assert same_on_all_ranks(model), (policy, values)
            norm = torch.stack([r.square().sum() for r in ledger.state.residuals.values()])
            assert ledger.state.last.residual_norm == pytest.approx(
                float(norm.sum().sqrt()), rel=1e-4
            )


@pytest.mark.parametrize("count", [2, 3])
def test_nothing_is_lost_and_ranks_agree(count):
    run_ranks(count, in_the_optimizers_units)


def an_optimizer_on_one_rank_only():
    rank = dist.get_rank()
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    gs.attach(model, threshold=gs.Density(0.1), optimizer=optimizer if rank else None)
    with pytest.raises(gs.SieveError, match="metric"):
        model(batch(0)).sum().backward()


def second_moments_on_one_rank_only():
    rank = dist.get_rank()
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    gs.attach(model, threshold=gs.Density(0.1), optimizer=optimizer, min_numel=100)
    if rank:
        for parameter in model.parameters():
            optimizer.state[parameter]["exp_avg_sq"] = torch.ones_like(parameter)
    with pytest.raises(gs.FrameError, match="layout"):
        model(batch(0)).sum().backward()


@pytest.mark.parametrize("differ", [an_optimizer_on_one_rank_only, second_moments_on_one_rank_only])
def test_ranks_that_differ_raise_on_all(differ):
    run_ranks(2, differ)


def stepped(optimizer_of, parameter):
    optimizer = optimizer_of([parameter])
    optimizer.step()
    return OptimizerMetric(optimizer)


def test_units_are_the_roots_of_second_moments_in_the_gradients_order():
    parameter = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    parameter.grad = torch.randn_like(parameter)
    metric = stepped(torch.optim.Adam, parameter)
    units = metric.scale(parameter, parameter.stride())
    roots = parameter.grad.abs() * 0.001**0.5
    laid_out = units.as_strided(parameter.shape, parameter.stride())
    torch.testing.assert_close(laid_out, roots.clamp_min(float(roots.max()) * LOWEST))
    contiguous = metric.scale(parameter, parameter.contiguous().stride())
    torch.testing.assert_close(contiguous.view(parameter.shape), laid_out)


def test_elements_that_never_saw_a_gradient_have_the_lowest_unit():
    parameter = torch.zeros(100)
    parameter.grad = torch.zeros(100)
    parameter.grad[:10] = 2.0
    units = stepped(torch.optim.Adam, parameter).scale(parameter, (1,))
    assert (units[10:] == units.max() * LOWEST).all()


@pytest.mark.parametrize("gradient", [0.0, torch.inf, torch.nan])
def test_second_moments_of_no_use_are_no_units(gradient):
    parameter = torch.zeros(100)
    parameter.grad = torch.full((100,), gradient)
    assert stepped(torch.optim.Adam, parameter).scale(parameter, (1,)) is None


def test_sgd_and_the_time_before_the_first_step_have_no_units():
    parameter = torch.zeros(100)
    parameter.grad = torch.ones(100)
    assert stepped(torch.optim.SGD, parameter).scale(parameter, (1,)) is None
    fresh = OptimizerMetric(torch.optim.Adam([parameter]))
    assert fresh.scale(parameter, (1,)) is None
