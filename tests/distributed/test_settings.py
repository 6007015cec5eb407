"""The arguments of `attach`, and states that a tool registers without a model."""

import torch
from models import Crossed, Ledger, Net, batch, build, same_on_all_ranks, train, weights
from ranks import run_ranks

import gradsieve as gs


def whole_and_pruned():
    model = build()
    ledger = Ledger(model, threshold=gs.Fixed(torch.inf), min_numel=1000)
    state = ledger.state
    pruned = [parameter.name for parameter in state.sieve.parameters if not parameter.whole]
    assert pruned == ["two.weight"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        ledger.step(optimizer, batch(step))
        assert not model.module.two.weight.grad.any()
        assert model.module.one.weight.grad.any()
        assert list(state.last.thresholds) == ["two.weight"]
    assert state.residuals["two.weight"].any()
    small = sum(p.numel() for p in model.parameters()) - 1200
    # Powers of two take some five bits here, where bfloat16 would take 16.
    assert small / 4 < state.last.frame_bytes < small


def without_error_feedback():
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.05), min_numel=100, error_feedback=False)
    train(model, 3)
    assert all(not residual.any() for residual in state.residuals.values())
    assert state.last.residual_norm == 0
    assert 0 < state.last.densities["one.weight"] < 0.2


def plain_before_start_step():
    plain = build()
    reference = train(plain, 3)
    model = build()
    settings = {"threshold": gs.Density(0.05), "min_numel": 100}
    state = gs.attach(model, **settings, start_step=3)
    records = []
    state.on_step = records.append
    optimizer = train(model, 3)
    assert torch.equal(weights(model), weights(plain))
    assert all(not residual.any() for residual in state.residuals.values())
    train(model, 2, first=3, optimizer=optimizer)
    train(plain, 2, first=3, optimizer=reference)
    assert [record.plain for record in records] == [True] * 3 + [False] * 2
    assert [record.density for record in records[:3]] == [1.0] * 3
    assert records[-1].density < 0.3
    assert not torch.equal(weights(model), weights(plain))
    assert same_on_all_ranks(model)


def ramp():
    for policy in (gs.Fixed(0.005), gs.Sigma(2.5), gs.UnsentMean(4.0)):
        model = build()
        # Error feedback sends in bursts, under which the ramp is harder to see.
        settings = {"min_numel": 100, "error_feedback": False, "start_step": 1, "ramp_steps": 8}
        state = gs.attach(model, threshold=policy, **settings)
        densities, thresholds = [], []
        state.on_step = lambda record, d=densities, t=thresholds: (
            d.append(record.densities.get("two.weight")),
            t.append(record.thresholds.get("two.weight")),
        )
        train(model, 14, lr=0.0)
        assert densities[1] > densities[5] > densities[8], (policy, densities)
        assert max(densities[9:]) < densities[1]
        if policy == gs.Fixed(0.005):
            torch.testing.assert_close(
                torch.tensor(thresholds[1:11]),
                torch.tensor([0.005 * min(1, step / 9) for step in range(1, 11)]),
            )


def every_setting():
    whole_and_pruned()
    without_error_feedback()
    plain_before_start_step()
    ramp()


def test_min_numel_error_feedback_start_step_and_ramp():
    run_ranks(2, every_setting)


def unbound():
    # Before DDP rebuilds its buckets there is one a dtype, unless it looks for unused parameters.
    for choice in ({}, {"find_unused_parameters": True}):
        for make in (Net, Crossed):
            model = build(make, **choice)
            state = gs.SieveState(threshold=gs.Density(0.05), min_numel=100)
            model.register_comm_hook(state, gs.sieve_hook)
            plain = build(make, **choice)
            optimizer = train(model, 1)
            assert state.last.plain
            train(plain, 1)
            assert torch.equal(weights(model), weights(plain))
            train(model, 3, first=1, optimizer=optimizer)
            assert not state.last.plain
            assert same_on_all_ranks(model)
            shapes = [tuple(p.shape) for p in model.parameters()]
            kept = {str(n): shape for n, shape in enumerate(shapes)}
            assert {n: tuple(r.shape) for n, r in state.residuals.items()} == kept
            assert sum(not parameter.whole for parameter in state.sieve.parameters) == 3
            assert list(state.state_dict()["parameters"]) == [str(n) for n in range(len(shapes))]


def test_a_state_that_is_registered_without_a_model_numbers_the_parameters():
    run_ranks(2, unbound)


def left_out():
    """The first steps are dense, as with plain DDP; then frames travel, or what is quicker."""
    plain, model = build(), build()
    state = gs.attach(model)
    assert state.exchange == "auto"
    assert state.sieve.thresholds.policy == gs.Budget("auto")
    train(plain, 2)
    train(model, 2)
    assert state.last.exchange == "dense"
    torch.testing.assert_close(weights(model), weights(plain))
    train(model, 18, first=2)
    assert same_on_all_ranks(model)
    assert gs.SieveState(threshold=gs.Density(0.1)).exchange == "gather"


def test_what_is_left_out_follows_the_link():
    run_ranks(2, left_out)
