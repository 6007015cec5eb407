"""Ranks that are not set up alike say so on every rank, and soon."""

import gc
import itertools
import json
import os
import signal
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from local_steps import exact
from local_steps import train as train_apart
from models import Ledger, Net, batch, build, on_every_rank, same_on_all_ranks, smaller_pieces
from models import train as train_together
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.exchange import attendance, roll_call, stall, texts
from gradsieve.exchange.agreement import Description
from gradsieve.exchange.topology_names import EXCHANGES
from gradsieve.runtime.torch_private import default_store

POLICY = {"threshold": gs.Density(0.05), "min_numel": 100}
SOON = 5


def hurry(seconds=0.2):
    attendance.PATIENCE = seconds
    stall.STALL = seconds
    roll_call.PATIENCE = 1.0
    roll_call.SHORT_PATIENCE = 0.5


def error_of(body, *args, **options):
    """What it raises, within some seconds."""
    start = time.monotonic()
    try:
        body(*args, **options)
    except Exception as error:
        assert time.monotonic() - start < SOON
        return type(error), str(error)
    return None, ""


def step(model, number=0):
    dtype = next(model.parameters()).dtype
    model(batch(number).to(dtype)).square().mean().backward()


def all_is_well():
    model = build()
    gs.attach(model, **POLICY)
    train_together(model, 2)
    assert same_on_all_ranks(model)


# Ranks without gradsieve.


def unattached(cases, last):
    """With one bucket a rank without gradsieve gets through its step, and the next case comes."""
    hurry()
    rank = dist.get_rank()
    for ranks, options in [*cases, (last, {"find_unused_parameters": True})]:
        is_last = bool(options.get("find_unused_parameters"))
        model = build(**{"bucket_cap_mb": 0.005 if is_last else 25} | options)
        if rank not in ranks:
            gs.attach(model, **POLICY, start_step=len(options))
            who = f"rank {ranks[0]} trains" if len(ranks) == 1 else "ranks 0, 2 train"
            kind, message = error_of(step, model)
            assert kind is gs.MismatchError, (options, message)
            assert f"{who} without gradsieve: call attach on every rank" in message
        elif is_last:
            # It waits until the others end.
            kind, _ = error_of(step, model)
            assert kind is RuntimeError
        else:
            step(model)
        if not is_last:
            assert on_every_rank(True)
            all_is_well()


def test_ranks_without_gradsieve_are_named_within_the_first_step():
    views = {"gradient_as_bucket_view": True}
    run_ranks(2, unattached, [([1], {}), ([0], views), ([1], {"static_graph": True})], [1])
    run_ranks(3, unattached, [([0, 2], {}), ([1], views)], [0])


class Ones(nn.Module):
    """Its gradient is the same throughout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.weight * x


def late():
    hurry(0.1)
    rank = dist.get_rank()
    for make in (Net, lambda: nn.Linear(20, 5).to(torch.bfloat16), lambda: nn.Linear(20, 1).half()):
        model = build(make)
        state = gs.attach(model, **POLICY)
        if rank == 1:
            time.sleep(0.3)
        step(model)
        assert state.step == 1

    # DDP compares the parameters of all ranks itself, and not its buckets.
    for seconds in (0, 0.3):
        model = build(bucket_cap_mb=0.005 if rank == 0 else 25, find_unused_parameters=True)
        gs.attach(model, **POLICY)
        if rank == 1:
            time.sleep(seconds)
        kind, message = error_of(step, model)
        assert kind is gs.MismatchError
        assert "begin with different gradients (rank 0: " in message
    all_is_well()

    for factor in (-3.0, 0.0, 5.0, 1.0, torch.nan):
        model = build(Ones, bucket_cap_mb=25)
        if rank == 0:
            gs.attach(model, **POLICY)
        kind, _ = error_of(lambda m, f: (2 * m(f)).sum().backward(), model, factor)
        assert (kind is gs.MismatchError) == (rank == 0)
        assert on_every_rank(True)


def test_a_rank_that_is_late_goes_on_and_another_bucket_is_refused():
    run_ranks(2, late)


# An exchange that was set on some ranks.


def changes(pairs, goes_on):
    hurry(0.1)
    smaller_pieces()
    rank, count = dist.get_rank(), dist.get_world_size()
    others = "rank 0" if count == 2 else "ranks 0, 2, 3"
    for before, after in pairs:
        # A rank that all-reduces waits on in this group, which is of no use any more.
        model = build(process_group=dist.new_group())
        ledger = Ledger(model, exchange=before, node_size=2, **POLICY)
        state, optimizer = ledger.state, torch.optim.SGD(model.parameters(), lr=0.1)
        ledger.step(optimizer, batch(0), rtol=0.01)
        ledger.open()
        optimizer.zero_grad()
        if rank == 1:
            state.exchange = after
        kind, message = error_of(step, model, 1)
        assert kind is gs.MismatchError, (before, after, kind, message)
        assert f"in step 1 ({others}: {before}; rank 1: {after})" in message
        # Nothing is lost, and an error handler can save it.
        state.state_dict()
        for name, residual in state.residuals.items():
            accumulated = ledger.before[name] + ledger.gradients.get(name, 0)
            untouched = torch.equal(residual, ledger.before[name]) or before == "hierarchical"
            assert untouched or torch.equal(residual, accumulated), name
        if goes_on and "dense" not in before and before != "auto":
            # Another DDP around the same network goes on with the same state.
            state.exchange = after
            module = model.module
            del model, ledger
            gc.collect()
            again = DDP(module)
            again.register_comm_hook(state, gs.sieve_hook)
            train_together(again, 2)
            assert state.step == 3
            assert same_on_all_ranks(again)
        assert on_every_rank(True)


PAIRS = [*itertools.permutations(EXCHANGES, 2)]


def test_an_exchange_that_is_set_on_one_rank_is_told_on_every_rank():
    run_ranks(2, changes, PAIRS, False)


def test_ranks_that_parted_can_go_on_together():
    pairs = ("gather", "hierarchical"), ("hierarchical", "two-shot"), ("dense", "dense-fp16")
    run_ranks(4, changes, pairs, True)


def several_differ():
    hurry(0.1)
    rank = dist.get_rank()
    model = build()
    state = gs.attach(model, **POLICY, exchange="two-shot")
    train_together(model, 2)
    # Set and set back, on one rank, is no change; set on all, it is one, however late a rank is.
    if rank == 1:
        state.exchange = "dense"
        state.exchange = "two-shot"
    train_together(model, 1, first=2)
    state.exchange = "gather"
    if rank == 2:
        time.sleep(0.5)
    train_together(model, 1, first=3)
    # What those said that waited stays in the store for a step.
    train_together(model, 1, first=4)
    assert on_every_rank(True)
    keys = getattr(default_store(), "list_keys", list)()
    assert not [key for key in keys if "accord" in key]
    assert state.last.exchange == "gather"
    assert same_on_all_ranks(model)
    if rank:
        state.exchange = "dense" if rank == 1 else "hierarchical"
    kind, message = error_of(step, model)
    assert kind is gs.MismatchError
    assert "in step 5 (rank 0: gather; rank 1: dense; rank 2: hierarchical)" in message

    # Before the first pruned step nobody asks.
    for other in ("dense", "hierarchical", "auto"):
        model = build()
        state = gs.attach(model, **POLICY, start_step=2)
        train_together(model, 1)
        if rank == 0:
            state.exchange = other
        train_together(model, 1, first=1)
        kind, message = error_of(step, model)
        assert kind is gs.MismatchError
        assert f"in step 2 (rank 0: {other}; ranks 1, 2: gather)" in message

    # Local steps.
    net = nn.Linear(20, 5)
    outer = gs.OuterSync(net, every=1, **exact())
    train_apart(net, outer, 2)
    outer.state.exchange = "two-shot" if rank == 1 else "gather"
    kind, message = error_of(train_apart, net, outer, 1)
    assert kind is gs.MismatchError
    assert "in step 2 (ranks 0, 2: gather; rank 1: two-shot)" in message
    assert on_every_rank(True)


def test_ranks_of_three_exchanges_are_all_named_and_a_common_change_is_none():
    run_ranks(3, several_differ)


# What ranks say of themselves.

SAID = Description(("min_numel=5",), ())


def saying(words):
    """On rank 1, in place of its description."""
    mine = Description.text(SAID)
    return lambda self: words if dist.get_rank() == 1 else mine


def strangers():
    hurry()
    describe = Description.text
    newer = json.loads(describe(SAID)) | {"versions": ["gradsieve=9.8", "frames=77"]}
    other = json.loads(describe(SAID)) | {"versions": [*SAID.versions, "blake=3"]}
    for said, expected in (
        (json.dumps(newer), f"different versions: rank 0 has {SAID.versions[0]}, rank 1 has "
         "gradsieve=9.8. Install the same version"),
        (json.dumps(other), "rank 0 has 2 lines, rank 1 has 3 lines"),
        (json.dumps({"versions": newer["versions"]}), "rank 1 has gradsieve=9.8"),
        ("not JSON", "rank 1 runs another version of gradsieve"),
        ("[" * 100_000, "rank 1 runs another version"),
        ("17", "rank 1 runs another version"),
        ('{"versions": 3}', "rank 1 runs another version"),
        ('{"settings": []}', "rank 1 runs another version"),
        ("x" * 1001, "rank 1 tells 1001 bytes"),
    ):  # fmt: skip
        Description.text = saying(said)
        texts.LONGEST = 1000 if "x" in said[:1] else 2**26
        model = build(lambda: nn.Linear(20, 5))
        gs.attach(model, **POLICY)
        kind, message = error_of(step, model)
        assert kind is gs.MismatchError
        assert expected in message, message
        kind, message = error_of(gs.OuterSync, Net())
        assert kind is gs.MismatchError
        assert expected in message
    Description.text = describe

    # An older one sends pickles, and cannot read what it gets.
    everyone = dist.group.WORLD
    if dist.get_rank() == 1:
        kind, _ = error_of(dist.all_gather_object, [None] * 2, SAID.settings)
        assert kind is not None
    else:
        kind, message = error_of(texts.texts_of_all, everyone, "mine")
        assert kind is gs.MismatchError
        assert "rank 1 runs another version" in message
    mine = ["", "\u2028\N{SNOWMAN}" * 5][dist.get_rank()]
    assert texts.texts_of_all(everyone, f"é{mine}") == ["é", "é" + "\u2028\N{SNOWMAN}" * 5]
    all_is_well()


def test_what_a_rank_says_of_itself_is_checked_and_versions_are_compared():
    run_ranks(2, strangers)


# Ranks that are not there.


def one_outer_is_missing():
    hurry(0.1)
    few = dist.new_group(timeout=timedelta(seconds=1))
    if dist.get_rank() == 1:
        time.sleep(1.5)
    else:
        kind, message = error_of(gs.OuterSync, Net(), process_group=few)
        assert kind is gs.ExchangeError
        assert "rank 1 has made no OuterSync" in message
    # A rank dies while the others make a group with it.
    few = dist.new_group(timeout=timedelta(seconds=1))
    if dist.get_rank() == 1:
        dist.new_group = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    model = build(process_group=few)
    gs.attach(model, **POLICY)
    return error_of(step, model)


def test_a_rank_that_is_not_there_while_the_others_meet_is_named():
    for outcome in run_ranks(3, one_outer_is_missing)[::2]:
        kind, message = outcome
        assert kind is gs.ExchangeError
        assert "rank 1 has died or stalled" in message
