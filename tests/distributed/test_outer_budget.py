"""Local steps: what they take of a link and of memory."""

import gc
import time

import pytest
import torch
from local_steps import build, train
from models import batch, same_on_all_ranks
from ranks import run_ranks
from torch import nn

import gradsieve as gs

RATE = 2e6
"""Bits a second."""


def keep_to_a_rate(every):
    net = build(lambda: nn.Linear(20, 4000))
    budget = gs.Budget(bits_per_second=RATE)
    outer = gs.OuterSync(net, every=every, threshold=budget, exchange="gather")
    optimizer, start, sent = None, 0.0, 0
    for step in range(300):
        if step == 150:
            start, sent = time.perf_counter(), outer.state.totals.frame_bytes
        optimizer = train(net, outer, 1, first=step, optimizer=optimizer)
        time.sleep(0.002)
    bits = 8 * (outer.state.totals.frame_bytes - sent)
    return bits / (time.perf_counter() - start), outer.every


def test_a_budget_of_bits_a_second_is_kept():
    for rate, every in run_ranks(2, keep_to_a_rate, 10):
        assert 0.4 * RATE < rate < 2 * RATE
        assert every == 10


def test_where_bits_are_scarce_ranks_meet_less_often():
    (rate, every), (_, other) = run_ranks(2, keep_to_a_rate, (2, 20))
    assert rate < 2 * RATE
    assert 4 < every == other <= 20


def leave_everything_to_it(delay):
    net = build(lambda: nn.Linear(20, 4000))
    outer = gs.OuterSync(net, every=2, delay=delay)
    train(net, outer, 40)
    outer.finish()
    assert same_on_all_ranks(net)
    assert outer.state.totals.steps == 20
    assert outer.state.totals.exchanges["dense"] >= 5


@pytest.mark.parametrize("delay", [0, 1])
def test_everything_may_be_left_to_it(delay):
    run_ranks(2, leave_everything_to_it, delay)


def go_dense():
    net = build(lambda: nn.Linear(20, 4000))
    outer = gs.OuterSync(net, every=(2, 20), threshold=gs.Budget(seconds_per_step=1.0))
    outer.state.exchange = "dense"
    outer.state.sieve.thresholds.budget.scale = 9.0
    train(net, outer, 12)
    assert outer.every == 2
    assert set(outer.state.totals.exchanges) == {"dense"}


def test_thresholds_that_prune_nothing_say_nothing_of_the_phase():
    run_ranks(2, go_dense)


def send_no_more_than_asked():
    net = build(lambda: nn.Linear(20, 4000))
    outer = gs.OuterSync(net, every=2, threshold=gs.Budget(bits_per_second=RATE))
    train(net, outer, 40)
    assert set(outer.state.totals.exchanges) <= {"gather", "two-shot"}


def test_a_budget_in_bits_is_never_dense():
    run_ranks(2, send_no_more_than_asked)


def memory(delay):
    """Bytes a parameter between exchanges, and while one is under way."""
    net = build(lambda: nn.Linear(1000, 400))
    numel = sum(p.numel() for p in net.parameters())
    outer = gs.OuterSync(net, every=2, delay=delay, threshold=gs.Sigma(2.0), exchange="gather")
    optimizer = train_wide(net, outer, 6 + delay)
    theirs = {t.data_ptr() for p in net.parameters() for t in (p, p.grad) if t is not None}
    between = size_of_tensors(theirs) / numel
    train_wide(net, outer, 2 - delay, optimizer)
    return between, size_of_tensors(theirs) / numel


def size_of_tensors(besides):
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.numel() >= 1000 * 400:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(size for pointer, size in storages.items() if pointer not in besides)


def train_wide(net, outer, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        net(batch(step, features=1000)).square().mean().backward()
        optimizer.step()
        outer.step()
    return optimizer


@pytest.mark.parametrize(("delay", "under_way"), [(0, 16), (1, 24)])
def test_memory_is_sixteen_bytes_a_parameter_and_more_under_way(delay, under_way):
    for between, meanwhile in run_ranks(2, memory, delay):
        assert between == pytest.approx(16, rel=0.01)
        assert meanwhile == pytest.approx(under_way, rel=0.01)
