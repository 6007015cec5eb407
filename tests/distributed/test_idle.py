"""Who makes a sieve and trains without it is told so, once, and what to do."""

import copy
import gc

import pytest
import torch
from models import build, on_every_rank, train
from ranks import run_ranks
from told import Told
from torch import nn

import gradsieve as gs
from gradsieve.runtime import notices
from gradsieve.telemetry.idle import STEPS, watch


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(notices, "_told", set())


def steps(model, count=STEPS, optimizers=1):
    """Optimizer steps without DDP."""
    made = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(optimizers)]
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for optimizer in made:
            optimizer.step()


def test_a_sieve_that_no_gradients_reach_is_told_of_once(caplog):
    net = nn.Linear(20, 30)
    state = gs.SieveState(min_numel=100)
    state.bind(net)
    caplog.clear()
    # Not until the same optimizer has stepped several times; nor for another model.
    steps(net, STEPS - 1, optimizers=STEPS)
    steps(nn.Linear(20, 30))
    assert not caplog.messages
    steps(net)
    (told,) = caplog.messages
    assert told.startswith(f"gradsieve: the optimizer has stepped {STEPS} times, and no gradients")
    assert "gs.attach" in told
    assert "Lightning" in told
    notices._told.clear()
    steps(net)
    assert len(caplog.messages) == 1


def test_a_sieve_without_a_model_awaits_gradients_of_any(caplog):
    state = gs.SieveState(min_numel=100)
    steps(nn.Linear(20, 30))
    assert len(caplog.messages) == 1
    assert state.step == 0


def test_what_is_freed_or_copied_awaits_nothing(caplog):
    net = nn.Linear(20, 30)
    state = gs.SieveState(min_numel=100)
    copied = copy.deepcopy(state)
    del state
    gc.collect()
    steps(net)
    assert not caplog.messages
    copied.bind(net)
    caplog.clear()
    steps(net)
    assert len(caplog.messages) == 1


def train_past_it():
    handler = Told()
    # In use: nothing is said, and nothing is watched any more.
    model = build()
    sieve = gs.attach(model, start_step=2, min_numel=100)
    train(model, 2 * STEPS)
    assert sieve.step == 2 * STEPS
    assert not watch._steps
    handler.take()
    # A module inside of DDP trains without it.
    model = build()
    sieve = gs.attach(model, min_numel=100)
    handler.take()
    train(model.module, STEPS)
    (told,) = handler.take()
    assert "the model trains without it" in told
    # Local steps that are counted, long before the first exchange.
    outer = gs.OuterSync(net := build().module, every=500, min_numel=100)
    handler.take()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(STEPS + 1):
        train(net, 1, step, optimizer=optimizer)
        outer.step()
    assert not handler.take()
    assert not watch._steps
    # Local steps that nobody counts.
    outer = gs.OuterSync(net := build().module, every=500, min_numel=100)
    handler.take()
    train(net, STEPS)
    (told,) = handler.take()
    assert "OuterSync.step() was never called" in told
    assert outer.inner_steps == 0
    assert on_every_rank(True)


def test_ranks_that_train_past_it_are_told():
    run_ranks(2, train_past_it)
