"""Local steps: what goes wrong on one rank is told on all of them."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from local_steps import Normed, average, build, exact, train
from models import on_every_rank, weights
from ranks import run_ranks
from torch import nn

import gradsieve as gs


def diverge(options):
    net = build()
    outer = gs.OuterSync(net, every=2, optimizer=average, **options)
    optimizer = train(net, outer, 2)
    before = {name: w.detach().clone() for name, w in outer._weights.named}
    if dist.get_rank() == 1:
        with torch.no_grad():
            net.one.weight[0, 0] = torch.nan
    whose = "this" if dist.get_rank() == 1 else "another"
    told = rf"weights of {whose} rank were not finite .* \(rank 1: .*one\.weight"
    with pytest.raises(gs.SieveError, match=told):
        train(net, outer, 2, first=2, optimizer=optimizer)
    assert all(torch.equal(w, before[name]) for name, w in outer._weights.named)


@pytest.mark.parametrize("exchange", ["gather", "dense"])
def test_weights_that_are_not_finite_are_told_on_every_rank(exchange):
    run_ranks(2, diverge, exact(exchange=exchange))


def die(delay):
    net = build()
    outer = gs.OuterSync(
        net, every=4, delay=delay, threshold=gs.Sigma(1.0), exchange="gather", min_numel=100
    )
    optimizer = train(net, outer, 4 + delay)
    before = {name: w.detach().clone() for name, w in outer._weights.named}
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(gs.ExchangeError, match="rank 1 has died"):
        train(net, outer, 4, first=4 + delay, optimizer=optimizer)
    assert all(torch.equal(w, before[name]) for name, w in outer._weights.named)
    for call in (outer.step, outer.finish, outer.state_dict):
        with pytest.raises(gs.SieveError, match="load the last checkpoint"):
            call()


@pytest.mark.parametrize("delay", [0, 2])
def test_when_a_rank_dies_it_is_said_and_no_wrong_checkpoint_is_made(delay):
    run_ranks(2, die, delay)


def spoil_statistics():
    net = Normed()
    outer = gs.OuterSync(net, every=2, **exact())
    if dist.get_rank() == 1:
        net.norm.running_var.fill_(torch.nan)
    net.norm.eval()
    net.norm.track_running_stats = False
    with pytest.raises(gs.SieveError, match="statistics that the model keeps"):
        train(net, outer, 2)


def test_statistics_that_are_not_finite_are_told_on_every_rank():
    run_ranks(2, spoil_statistics)


def disagree():
    with pytest.raises(
        gs.SieveError, match=r"rank 0 has every=\[2, 2\], rank 1 has every=\[3, 3\]"
    ):
        gs.OuterSync(build(), every=2 + dist.get_rank())
    with pytest.raises(gs.SieveError, match=r"different settings: .* has min_numel=5"):
        gs.OuterSync(build(), min_numel=5 + dist.get_rank())
    with pytest.raises(gs.SieveError, match="different models"):
        gs.OuterSync(nn.Linear(20, 40 + dist.get_rank()))
    net = nn.Sequential(build(), nn.Linear(20, 20 + dist.get_rank()).requires_grad_(False))
    with pytest.raises(gs.SieveError, match=r"different models: .* 1\.weight \[21, 20\]"):
        gs.OuterSync(net)
    assert on_every_rank(True)


def test_ranks_that_differ_are_told_so_when_they_begin():
    run_ranks(2, disagree)


class FullyShardedDataParallel(nn.Module):
    """Torch's own needs an accelerator."""


class FirstFSDP(FullyShardedDataParallel):
    pass


def one_rank():
    net = build()
    outer = gs.OuterSync(net, every=2, optimizer=average, **exact())
    train(net, outer, 3)
    mine = weights(net)
    outer.finish()
    torch.testing.assert_close(weights(net), mine)
    for arguments, error, words in (
        ({"model": "net"}, TypeError, "torch.nn.Module, got str"),
        (
            {"model": nn.Sequential(FirstFSDP())},
            TypeError,
            r"FSDP has packed together; shard it with fully_shard .*mesh\[.replicate.\]",
        ),
        ({"offload": "disk"}, ValueError, 'offload must be "cpu" or None'),
        ({"every": (2, 9), "threshold": gs.Sigma(1.0)}, ValueError, "follows a Budget"),
        ({"every": 0}, ValueError, "every must be 1 or more"),
        ({"model": nn.ReLU()}, ValueError, "no parameters"),
        ({"model": build().double()}, gs.SieveError, "one.weight is torch.float64"),
        ({"fragments": 7}, ValueError, "7 fragments of a model of 6 parameters"),
        ({"every": 2.5}, TypeError, "every must be a whole number, got 2"),
        ({"optimizer": None}, TypeError, r"makes a torch optimizer .* found None"),
        ({"optimizer": average(net.parameters())}, TypeError, "a function that makes"),
        ({"optimizer": lambda weights: None}, TypeError, "a function that makes"),
        ({"optimizer": lambda _: average(net.parameters())}, ValueError, "holds other parameters"),
    ):
        with pytest.raises(error, match=words):
            gs.OuterSync(**{"model": build()} | arguments)
    net = Normed()
    outer = gs.OuterSync(net, every=2, **exact())
    net.frozen.requires_grad_(True)
    with pytest.raises(gs.SieveError, match=r"parameter frozen\.weight is trained now"):
        outer.step()
    assert outer.inner_steps == 0


def test_one_rank_alone_and_what_is_refused():
    run_ranks(1, one_rank)


def belong_to_other_groups():
    """As the leader of each node has one more group than its mates."""
    dist.new_group([0])
    train(build(), gs.OuterSync(build(), every=1, **exact()), 2)
    pair = dist.new_group([0, 1])
    if dist.get_rank() == 2:
        with pytest.raises(ValueError, match="this rank is no member of"):
            gs.OuterSync(build(), process_group=pair)
    else:
        with pytest.raises(gs.SieveError, match="in different numbers of process groups"):
            gs.OuterSync(build(), process_group=pair)
    assert on_every_rank(True)


def test_groups_that_only_some_ranks_are_in_stop_nobody():
    run_ranks(3, belong_to_other_groups)


def listen_badly():
    net = build()
    outer = gs.OuterSync(net, every=2, optimizer=average, **exact())

    def fall_over(record):
        raise ZeroDivisionError

    outer.on_step = fall_over
    with pytest.raises(ZeroDivisionError):
        train(net, outer, 2)
    outer.on_step = None
    train(net, outer, 2, first=2)
    assert outer.last.step == outer.inner_steps == 4


def test_an_error_of_the_listener_is_none_of_the_exchange():
    run_ranks(2, listen_badly)
