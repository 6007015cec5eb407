"""Stop, load, go on: as if never stopped, bit for bit."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from models import Crossed, Net, batch, build, on_every_rank, smaller_pieces, train, weights
from ranks import run_ranks
from torch import nn

import gradsieve as gs
from gradsieve.saved.seal import sealed

POLICIES = [gs.UnsentMean(4.0), gs.Sigma(2.0), gs.Density(0.05), gs.Sigma(1.0, of="balanced")]


def start(policy, *, bound, make=Crossed, state=None, exchange="gather", **choice):
    model = build(make, **choice)
    if state is None:
        state = gs.SieveState(threshold=policy, min_numel=100, exchange=exchange)
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

    fresh = gs.SieveState(threshold=policy, min_numel=100, exchange=exchange)
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


def saved_state(make=Net, **settings):
    state = gs.SieveState(threshold=gs.Fixed(1.0), **({"min_numel": 100} | settings))
    state.bind(make())
    return state.state_dict()


def wider():
    net = Net()
    net.one = nn.Linear(21, 40)
    return net


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (saved_state(lambda: nn.Linear(20, 40)), "another model"),
        (saved_state(min_numel=10_000), "min_numel was 10000 and is 100 here"),
        (saved_state(wider), "one.weight"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_words(saved, words):
    for bind_first in (True, False):
        state = gs.SieveState(threshold=gs.Fixed(1.0), min_numel=100)
        if bind_first:
            state.bind(Net())
            with pytest.raises(ValueError, match=words):
                state.load_state_dict(saved)
            assert state.step == 0
        else:
            with pytest.raises(ValueError, match=words):
                load_and_bind(state, saved)
            assert not state.sieve.parameters.states


def load_and_bind(state, saved):
    state.load_state_dict(saved)
    state.bind(Net())


def refused_at_the_first_step(saved, words, right, *, bound, kinds=ValueError):
    """By all ranks, whichever of them have loaded what is wrong."""
    state = gs.SieveState(threshold=gs.Fixed(0.1), min_numel=100)
    state.load_state_dict(saved)
    model, state, optimizer = start(None, bound=bound, make=Net, state=state)
    model.load_state_dict(right)
    before = weights(model)
    with pytest.raises(kinds, match=words):
        train(model, 1, optimizer=optimizer)
    assert torch.equal(weights(model), before)
    assert on_every_rank(True)


def start_and_train(state, *, bound):
    model, _, optimizer = start(None, bound=bound, make=Net, state=state)
    train(model, 1, optimizer=optimizer)


def others_states():
    rank = dist.get_rank()
    for bound in (True, False):
        model, state, optimizer = start(gs.Fixed(0.1), bound=bound, make=Net)
        train(model, 2, optimizer=optimizer)
        right, saved = copy.deepcopy(model.state_dict()), state.state_dict()
        train(model, 1, first=2, optimizer=optimizer)
        words = r"weights are not those of the step .*load the model's checkpoint of the same step"
        refused_at_the_first_step(saved, words, model.state_dict(), bound=bound)
        # One rank alone has loaded another state than the model's, of the same number of steps.
        later = sealed(state.state_dict() | {"step": 2})
        one = later if rank else saved
        refused_at_the_first_step(one, words, right, bound=bound, kinds=gs.SieveError)
        # Numbers for names, and the other way round.
        if not bound:
            numbered = state.state_dict()
        else:
            named = state.state_dict()
    for saved, bound in ((named, False), (numbered, True)):
        one = gs.SieveState(threshold=gs.Fixed(0.1), min_numel=100)
        one.load_state_dict(saved)
        with pytest.raises((ValueError, gs.SieveError), match="another model"):
            start_and_train(one, bound=bound)
        assert on_every_rank(True)

    # Another rank's, another world size's: refused at once.
    model, state, _ = start(gs.Fixed(0.1), bound=True, make=Net)
    model.load_state_dict(right)
    others = [None, None]
    dist.all_gather_object(others, named)
    for saved, theirs in ((others[1 - rank], 1 - rank), (sealed(named | {"world_size": 4}), rank)):
        size = saved["world_size"]
        words = f"state of rank {theirs} of {size}, loaded on rank {rank} of 2"
        for fresh in (state, gs.SieveState(threshold=gs.Fixed(0.1), min_numel=100)):
            with pytest.raises(ValueError, match=words):
                fresh.load_state_dict(saved)
            assert fresh.step == 0


def test_another_s_state_is_refused_before_anything_is_exchanged():
    run_ranks(2, others_states)


def a_state_after_an_overflow():
    """What a step that was not finite leaves behind can be saved and loaded."""
    model, state, _ = start(gs.UnsentMean(4.0), bound=True, make=Net, exchange="two-shot")
    train(model, 2, lr=0.0)
    bad = batch(2)
    bad[0, 0] = float("inf")
    model(bad).square().mean().backward()
    assert state.last.nonfinite
    saved = through_a_file(state)[0]
    fresh = gs.SieveState(threshold=gs.UnsentMean(4.0), min_numel=100, exchange="two-shot")
    fresh.bind(model.module)
    fresh.load_state_dict(saved)
    assert fresh.state_dict()["checksum"] == saved["checksum"]


def test_a_state_after_an_overflow_loads():
    run_ranks(2, a_state_after_an_overflow)
