"""Stop, load, go on: as if never stopped, bit for bit."""

import io

import pytest
import torch
from models import Crossed, Net, build, smaller_pieces, train, weights
from ranks import run_ranks
from torch import nn

import gradsieve as gs

POLICIES = [gs.UnsentMean(4.0), gs.Sigma(2.0), gs.Density(0.05), gs.Sigma(1.0, of="balanced")]


def start(policy, *, bound, make=Crossed, state=None, exchange="gather", **choice):
    model = build(make, **choice)
    state = gs.SieveState(policy, min_numel=100, exchange=exchange) if state is None else state
    if bound:
        state.bind(model)
    model.register_comm_hook(state, gs.sieve_hook)
    return model, state, torch.optim.Adam(model.parameters(), lr=0.01)


def through_a_file(*things):
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in things], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Bases turn after the tenth step: later than what is saved has been loaded.
SAVED_AFTER, STEPS = 7, 12


def resume(policy, *, bound, load_first, exchange="gather", **choice):
    choice |= {"exchange": exchange}
    model, state, optimizer = start(policy, bound=bound, **choice)
    train(model, STEPS, optimizer=optimizer)
    expected, residuals = weights(model), dict(state.residuals)
    owned = state.owned_residuals
    assert (exchange == "two-shot") == any(kept.any() for kept in owned.values())

    model, state, optimizer = start(policy, bound=bound, **choice)
    train(model, SAVED_AFTER, optimizer=optimizer)
    saved = through_a_file(model, optimizer, state)

    fresh = gs.SieveState(policy, min_numel=100, exchange=exchange)
    if load_first:
        fresh.load_state_dict(saved[2])
    model, state, optimizer = start(policy, bound=bound, state=fresh, **choice)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    if not load_first:
        state.load_state_dict(saved[2])
    assert state.step == SAVED_AFTER
    records = []
    state.on_step = records.append
    train(model, STEPS - SAVED_AFTER, first=SAVED_AFTER, optimizer=optimizer)
    assert [record.step for record in records] == list(range(SAVED_AFTER, STEPS))
    assert not any(record.plain for record in records)
    assert torch.equal(weights(model), expected)
    assert all(torch.equal(state.residuals[name], r) for name, r in residuals.items())
    assert all(torch.equal(state.owned_residuals[name], kept) for name, kept in owned.items())
    assert any(residual.any() for residual in residuals.values())


def every_way_to_resume():
    for policy in POLICIES:
        for bound in (True, False):
            resume(policy, bound=bound, load_first=True)
            resume(policy, bound=bound, load_first=False, find_unused_parameters=True)
    smaller_pieces()
    resume(gs.Sigma(2.0), bound=True, load_first=True, exchange="two-shot")
    resume(gs.Sigma(2.0), bound=False, load_first=False, exchange="two-shot")


def test_resume_is_exact():
    run_ranks(2, every_way_to_resume)


def images():
    return nn.Conv2d(20, 8, 1).to(memory_format=torch.channels_last)


def saved_state(make=Net, **settings):
    state = gs.SieveState(gs.Fixed(1.0), **({"min_numel": 100} | settings))
    state.bind(make())
    return state.state_dict()


def wider():
    net = Net()
    net.one = nn.Linear(21, 40)
    return net


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({}, "version"),
        ({"version": 99, "step": 0, "parameters": {}}, "version 99"),
        ({"version": 1}, "parameters"),
        ({"version": 1, "step": 1, "parameters": {"one.weight": {}}}, "another model"),
        (saved_state(lambda: nn.Linear(20, 40)), "another model"),
        (saved_state(min_numel=10_000), "min_numel"),
        (saved_state(wider), "one.weight"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_words(saved, words):
    for bind_first in (True, False):
        state = gs.SieveState(gs.Fixed(1.0), min_numel=100)
        if bind_first:
            state.bind(Net())
            with pytest.raises(ValueError, match=words):
                state.load_state_dict(saved)
            assert state.step == 0
        else:
            with pytest.raises(ValueError, match=words):
                load_and_bind(state, saved)


def load_and_bind(state, saved):
    state.load_state_dict(saved)
    state.bind(Net())


def unbound_state_of_another_model():
    _, small, _ = start(gs.Fixed(0.1), bound=False, make=lambda: nn.Linear(20, 40))
    model, state, optimizer = start(gs.Fixed(0.1), bound=False, make=Net)
    small.bind(nn.Linear(20, 40))
    saved = {str(n): p for n, p in enumerate(small.state_dict()["parameters"].values())}
    state.load_state_dict({"version": 1, "step": 0, "parameters": saved})
    with pytest.raises((ValueError, gs.SieveError), match="another model"):
        train(model, 1, optimizer=optimizer)


def test_an_unbound_state_of_another_model_is_refused_at_the_first_step():
    run_ranks(1, unbound_state_of_another_model)
