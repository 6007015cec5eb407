"""Copies and pickles of an attached model and of its state."""

import copy
import io
import pickle
import tempfile

import pytest
import torch
from local_steps import build as plain_net
from models import (
    batch,
    build,
    on_every_rank,
    same_on_all_ranks,
    smaller_pieces,
    train,
    weights,
)
from ranks import run_ranks
from torch.optim.swa_utils import AveragedModel

import gradsieve as gs

SETTINGS = {"threshold": gs.Density(0.05), "min_numel": 100, "exchange": "gather"}


def saved_and_loaded(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [copy.deepcopy, saved_and_loaded, lambda thing: pickle.loads(pickle.dumps(thing))]


def state_in(model):
    """The state that a copied model remembers, as registered with the original."""
    ((_, state),) = model._comm_hooks
    return state


def alike(state, other):
    assert other.step == state.step
    assert other.sieve.settings == state.sieve.settings
    for mine, theirs in (
        (state.residuals, other.residuals),
        (state.owned_residuals, other.owned_residuals),
    ):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def copies_go_on(settings, *, bound):
    model = build()
    state = gs.SieveState(**SETTINGS | settings)
    if bound:
        state.bind(model)
    model.register_comm_hook(state, gs.sieve_hook)
    state.on_step = lambda record: None
    with tempfile.TemporaryDirectory() as directory:
        recorder = gs.Recorder(state, model, directory, tensorboard=False)
        fresh = copy.deepcopy(state)
        train(model, 4)
        copies = [(model, state)]
        for way in WAYS:
            other = way(model)
            mine = state_in(other)
            alike(state, mine)
            assert (mine.observers, mine.on_step) == ([], None)
            # Copies of copies, before and after they are bound.
            mine = copy.deepcopy(mine)
            alike(state, mine)
            mine.bind(other)
            mine = WAYS[1](mine)
            mine.bind(other)
            other.register_comm_hook(mine, gs.sieve_hook)
            copies.append((other, mine))
        assert fresh.step == 0
        recorder.close()
    for model_, state_ in copies:
        train(model_, 4, first=4)
        assert same_on_all_ranks(model_)
        assert torch.equal(weights(model_), weights(model))
        alike(state, state_)
    assert state.step == 8
    fresh.bind(build())


def words():
    model = build()
    state = gs.attach(model, **SETTINGS)
    average = AveragedModel(model)
    train(model, 3)
    average.update_parameters(model)
    assert average.module.module.one.weight.grad is None

    def refused(body, error, text):
        found = None
        try:
            body()
        except Exception as raised:
            found = raised
        assert on_every_rank(isinstance(found, error)), repr(found)
        assert text in str(found)

    # As a hook, before it was bound.
    other = copy.deepcopy(model)
    other.register_comm_hook(state_in(other), gs.sieve_hook)
    refused(lambda: train(other, 1), gs.SieveError, "is a copy, which serves no model yet: bind it")
    loose = copy.deepcopy(state)
    refused(lambda: loose.load_state_dict(state.state_dict()), gs.SieveError, "bind it before")
    refused(lambda: loose.bind(torch.nn.Linear(20, 40)), ValueError, "another model")
    alike(state, loose)
    assert loose.state_dict().keys() == state.state_dict().keys()
    refused(lambda: loose.bind(build()), ValueError, "the model's weights are not those")

    # Attached anew: a state of its own.
    other = copy.deepcopy(model)
    again = gs.attach(other, **SETTINGS)
    assert again.step == 0
    assert state_in(other) is again
    train(other, 2)
    assert again.step == 2
    refused(lambda: gs.attach(other), gs.SieveError, "once")
    refused(lambda: gs.attach(model), gs.SieveError, "once")
    # A model that is not attached is copied as before; its copy may be attached.
    train(copy.deepcopy(build()), 1)
    gs.attach(copy.deepcopy(build()), **SETTINGS)

    outer = gs.OuterSync(plain_net(), every=2, **SETTINGS)
    with tempfile.TemporaryDirectory() as directory:
        recorder = gs.Recorder(state, model, directory, tensorboard=False)
        for thing, instead in (
            (outer, "save outer.state_dict()"),
            (outer.state, "save outer.state_dict()"),
            (recorder, "make a new one"),
        ):
            for way in (*WAYS, copy.copy):
                with pytest.raises(
                    TypeError, match="cannot be copied or pickled: " + instead[:8]
                ) as e:
                    way(thing)
                assert instead in str(e.value)
        recorder.close()


def copies_know_no_scaler():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    model = build()
    state = gs.attach(model, scaler=scaler, **SETTINGS)
    for step in range(2):
        scaler.scale(model(batch(step)).square().mean()).backward()
    other = copy.deepcopy(model)
    copied = state_in(other)
    with pytest.raises(gs.SieveError, match="scaler=scaler"):
        copied.bind(other)
    copied.bind(other, scaler=scaler)
    alike(state, copied)
    other.register_comm_hook(copied, gs.sieve_hook)
    for mine in (model, other):
        mine.zero_grad()
        scaler.scale(mine(batch(2)).square().mean()).backward()
    alike(state, copied)
    assert copied.last.loss_scale == 2.0**8
    # What is exchanged between local steps carries no scale.
    outer = gs.OuterSync(plain_net(), every=2, scaler=scaler, **SETTINGS)
    assert outer.state.sieve.loss_scale.now == 1
    with pytest.raises(TypeError, match="get_scale"):
        gs.OuterSync(plain_net(), scaler=1.0, **SETTINGS)


def every_copy():
    copies_know_no_scaler()
    smaller_pieces()
    copies_go_on({}, bound=True)
    copies_go_on({}, bound=False)
    copies_go_on({"exchange": "two-shot", "rotation": 16, "values": "bfloat16"}, bound=True)
    copies_go_on({"threshold": gs.Sigma(1.0, of="balanced"), "exchange": "two-shot"}, bound=False)
    words()


def test_a_copy_goes_on_where_the_original_was():
    run_ranks(2, every_copy)
