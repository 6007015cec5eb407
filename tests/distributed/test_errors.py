"""What goes wrong is said in words, on every rank, and nothing hangs."""

import gc
import inspect
import math
import os
import signal
import subprocess
import threading
import time
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from models import (
    Ledger,
    Net,
    batch,
    build,
    on_every_rank,
    same_on_all_ranks,
    smaller_pieces,
    train,
    weights,
)
from ranks import run_ranks
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.bucket.requirements import require_torch
from gradsieve.saved.seal import sealed

POLICY = {"threshold": gs.Density(0.05), "min_numel": 100}


def raises_everywhere(kind, words, body):
    """The error comes on this rank, and on all others too."""
    found = None
    try:
        body()
    except Exception as error:
        found = error
    assert on_every_rank(isinstance(found, kind)), f"expected {kind.__name__}, got {found!r}"
    for word in words:
        assert word in str(found), f"{word!r} is not in: {found}"


class Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 40)
        self.too = nn.Linear(40, 30)
        self.three = nn.Linear(30, 5)

    def forward(self, x):
        return self.three(self.too(self.one(x).relu()).relu())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(200, 20, sparse=True)
        self.out = nn.Linear(20, 5)

    def forward(self, x):
        return self.out(self.table(x.abs().long()))


def different_ranks():
    rank = dist.get_rank()

    def settings():
        model = build()
        gs.attach(model, threshold=gs.Fixed(0.5 if rank == 2 else 0.25))
        train(model, 1)

    raises_everywhere(
        gs.SieveError, ["Fixed(value=0.25)", "Fixed(value=0.5)", "rank 2", "settings"], settings
    )

    def names():
        model = build(Renamed if rank == 1 else Net)
        gs.attach(model, **POLICY)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["two.weight", "too.weight", "rank 1", "models"], names)

    def steps():
        model = build()
        state = gs.attach(model, **POLICY)
        if rank == 0:
            state.load_state_dict(sealed(state.state_dict() | {"step": 7}))
        train(model, 1)

    raises_everywhere(gs.SieveError, ["step=7", "step=0"], steps)

    def bound_and_unbound():
        model = build()
        state = gs.SieveState(**POLICY)
        if rank == 0:
            state.bind(model)
        model.register_comm_hook(state, gs.sieve_hook)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["the ranks have different"], bound_and_unbound)


@dataclass(frozen=True)
class NoNumber:
    measured: ClassVar[gs.Measured] = "sent"

    def next(self, moments, threshold):
        return math.nan


def misuse():
    def attached_twice():
        model = build()
        gs.attach(model)
        gs.attach(model)

    raises_everywhere(gs.SieveError, ["sieve_hook", "once"], attached_twice)

    def beside_another_hook():
        model = build()
        model.register_comm_hook(None, fp16_compress_hook)
        gs.attach(model)

    raises_everywhere(gs.SieveError, ["fp16_compress_hook"], beside_another_hook)
    raises_everywhere(TypeError, ["DDP", "Net"], lambda: gs.attach(Net()))

    def bound_twice():
        state = gs.attach(build())
        state.bind(build())

    raises_everywhere(gs.SieveError, ["one SieveState a model"], bound_twice)

    def bound_late():
        model, state = build(), gs.SieveState(**POLICY)
        model.register_comm_hook(state, gs.sieve_hook)
        train(model, 1)
        state.bind(model)

    raises_everywhere(gs.SieveError, ["before the first"], bound_late)

    def two_models(*, bind):
        models, state = [build(), build()], gs.SieveState(**POLICY)
        if bind:
            state.bind(models[0])
        for model in models:
            model.register_comm_hook(state, gs.sieve_hook)
        train(models[0], 2)
        train(models[1], 1)

    for bind in (True, False):
        raises_everywhere(
            gs.SieveError, ["one SieveState a model"], lambda bind=bind: two_models(bind=bind)
        )

    def sparse():
        model = build(Words)
        model.register_comm_hook(gs.SieveState(**POLICY), gs.sieve_hook)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["sparse", "[200, 20]"], sparse)

    def double():
        model = build(lambda: Net().double())
        gs.attach(model, **POLICY)
        model(batch(0).double()).sum().backward()

    raises_everywhere(gs.SieveError, ["float64", "float32"], double)

    skipping = "skip_all_reduce_unused_params"
    if skipping in inspect.signature(DDP.__init__).parameters:
        option = {skipping: True, "find_unused_parameters": True}
        raises_everywhere(gs.SieveError, [skipping], lambda: gs.attach(build(**option)))

    def bad_policy():
        model = build()
        gs.attach(model, threshold=NoNumber(), min_numel=100)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["NoNumber", "nan", "0 or more"], bad_policy)

    # The process group is as good as new for the next model.
    model = build()
    gs.attach(model, **POLICY)
    train(model, 3)


def test_ranks_that_differ_say_so_on_every_rank():
    run_ranks(3, different_ranks)


def test_misuse_says_what_to_do_on_every_rank():
    run_ranks(2, misuse)


@pytest.mark.parametrize("name", ["min_numel", "start_step", "ramp_steps"])
def test_a_negative_count_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
        gs.SieveState(**{name: -1})


def test_an_old_torch_is_refused():
    with pytest.raises(gs.SieveError, match=r"torch 2\.6 or later, found 2\.5\.1"):
        require_torch("2.5.1")
    require_torch("2.6.0")
    require_torch("2.13.0+cpu")
    require_torch("3.0.0a0+git123")


def survive(how, dies_at, dying, exchange):
    """The message and the seconds it took, of a rank whose peer dies."""
    rank = dist.get_rank()
    smaller_pieces()
    model = build(bucket_cap_mb=0.005)
    ledger = Ledger(model, exchange=exchange, node_size=2 - dist.get_world_size() % 2, **POLICY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(dies_at):
        ledger.step(optimizer, batch(step))
    if rank == dying:
        if how == "exit":
            os._exit(1)
        os.kill(os.getpid(), signal.SIGKILL)
    ledger.open()
    kept = dict(ledger.state.residuals)
    optimizer.zero_grad()
    before, start = weights(model), time.monotonic()
    try:
        model(batch(dies_at)).square().mean().backward()
        message = "no error"
    except gs.ExchangeError as error:
        message = str(error)
    seconds = time.monotonic() - start
    assert torch.equal(weights(model), before)
    for name, residual in ledger.state.residuals.items():
        # Behind the bucket whose exchange failed nothing is selected any more.
        gradient = ledger.gradients[name]
        accumulated = torch.equal(residual, kept[name] + gradient) or exchange == "hierarchical"
        assert torch.equal(residual, kept[name]) or accumulated, name
    return message, seconds


@pytest.mark.parametrize(
    ("count", "exchange", "how", "dies_at"),
    [
        (3, "gather", "exit", 3),
        (3, "gather", "kill", 3),
        (3, "gather", "exit", 0),
        (3, "two-shot", "kill", 3),
        (3, "dense", "kill", 3),
        (4, "hierarchical", "kill", 3),
    ],
)
def test_a_dead_rank_is_named_by_the_others_and_nothing_is_lost(count, exchange, how, dies_at):
    outcomes = run_ranks(count, survive, how, dies_at, 1, exchange)
    assert outcomes[1] is None
    for rank in {*range(count)} - {1}:
        message, seconds = outcomes[rank]
        assert f"rank {rank} could not" in message
        assert "rank 1 has died or stalled" in message
        assert "checkpoint" in message
        assert seconds < 15


def with_a_pause(exchange, pauses):
    """The weights after some steps, in which rank 1 may be stopped for seconds."""
    smaller_pieces()
    model = build(bucket_cap_mb=0.005)
    ledger = Ledger(model, exchange=exchange, node_size=2 - dist.get_world_size() % 2, **POLICY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = time.monotonic()
    for step in range(4):
        if pauses and step == 2 and dist.get_rank() == 1:
            stop_and_go = f"kill -STOP {os.getpid()}; sleep 1; kill -CONT {os.getpid()}"
            subprocess.Popen(["sh", "-c", stop_and_go])
        ledger.step(optimizer, batch(step))
    if pauses and dist.get_rank() == 1:
        time.sleep(max(0.0, start + 2 - time.monotonic()))
    assert same_on_all_ranks(model)
    return weights(model).tolist(), time.monotonic() - start


@pytest.mark.parametrize(
    ("count", "exchange"), [(2, "gather"), (3, "two-shot"), (4, "hierarchical"), (2, "dense")]
)
def test_a_rank_that_is_stopped_for_seconds_costs_time_and_nothing_else(count, exchange):
    undisturbed, _ = run_ranks(count, with_a_pause, exchange, False)[0]
    paused, seconds = run_ranks(count, with_a_pause, exchange, True)[0]
    assert paused == undisturbed
    assert seconds > 0.8


def corrupted(damage):
    rank = dist.get_rank()
    model = build(bucket_cap_mb=0.005)
    ledger = Ledger(model, **POLICY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        ledger.step(optimizer, batch(step))
    transport = ledger.state.engine.groups.everyone
    whole = transport.to_all
    calls = []

    def broken(frame):
        arrived = whole(frame)
        calls.append(frame)
        if rank == 1 and len(calls) == 2:
            arrived[0] = damage(arrived[0].clone())
        return arrived

    transport.to_all = broken
    ledger.open()
    optimizer.zero_grad()
    found = None
    try:
        model(batch(3)).square().mean().backward()
    except (gs.FrameError, gs.ExchangeError) as error:
        found = error
    for name, residual in ledger.state.residuals.items():
        gradient = ledger.gradients.get(name, torch.zeros(()))
        back = torch.equal(residual, ledger.before[name] + gradient)
        assert back or (found is None and rank == 0), name
    return type(found).__name__, str(found)


def flip(frame):
    frame[-3] ^= 16
    return frame


def cut(frame):
    return frame[:-4]


@pytest.mark.parametrize(("damage", "field"), [(flip, "crc32"), (cut, "bytes")])
def test_a_damaged_frame_raises_and_nothing_is_lost(damage, field):
    _, (kind, message) = run_ranks(2, corrupted, damage)
    assert kind == "FrameError"
    assert f"frame field {field}" in message


def fail(gradient):
    raise RuntimeError("the loss function failed")


def stopped_in_mid_step():
    model = build()
    ledger = Ledger(model, **POLICY)
    for step in range(2):
        ledger.step(torch.optim.SGD(model.parameters(), lr=0.1), batch(step))
    ledger.open()
    handle = model.module.one.weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="the loss function failed"):
        model(batch(2)).square().mean().backward()
    handle.remove()
    assert 0 < len(ledger.gradients) < 6
    expected = {
        name: residual + ledger.gradients.get(name, 0) for name, residual in ledger.before.items()
    }

    # A file that an error handler tries in vain changes nothing.
    with pytest.raises(ValueError, match="version 99"):
        ledger.state.load_state_dict({"version": 99})

    # A checkpoint written now, by an error handler, has everything.
    saved = ledger.state.state_dict()["parameters"]
    for name, residual in expected.items():
        torch.testing.assert_close(saved[name]["residual"], residual)

    # DDP cannot go on after that; another one around the same network can, with the same state.
    module, state = model.module, ledger.state
    del model, ledger, handle
    gc.collect()
    module.zero_grad()
    again = Ledger(DDP(module), state=state)
    again.open()
    again.before = expected
    again.model(batch(3)).square().mean().backward()
    again.check()
    assert state.step == 3


def test_a_backward_pass_that_fails_half_way_leaves_nothing_behind():
    run_ranks(2, stopped_in_mid_step)


def make_and_forget():
    model = build()
    state = gs.attach(model, **POLICY)
    train(model, 2)
    assert "gradsieve-exchange" in thread_names()
    alive = [weakref.ref(thing) for thing in (model, model.module, state)]
    del model, state
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3
    deadline = time.monotonic() + 5
    while "gradsieve-exchange" in thread_names() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "gradsieve-exchange" not in thread_names()


def thread_names():
    return [thread.name for thread in threading.enumerate()]


def test_a_model_that_is_no_longer_used_is_freed():
    run_ranks(2, make_and_forget)
