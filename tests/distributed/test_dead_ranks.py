"""A rank that dies is named by the others, one that stalls costs time, and nothing is lost."""

import os
import signal
import subprocess
import time

import pytest
import torch
import torch.distributed as dist
from models import Ledger, batch, build, same_on_all_ranks, smaller_pieces, weights
from ranks import run_ranks

import gradsieve as gs

POLICY = {"threshold": gs.Density(0.05), "min_numel": 100}


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
