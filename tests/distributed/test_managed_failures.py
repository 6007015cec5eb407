"""Exchanges that fail in groups that others manage, and what the ranks that are left go on from."""

import os
import signal

import pytest
import torch
from managed import (
    SIGMA,
    Forwarding,
    Job,
    all_alike,
    alone,
    begin,
    own_of,
    train,
    unsent,
)
from ranks import run_ranks
from told import Told

import gradsieve as gs


class Breaking(Forwarding):
    """Breaks after so many collectives. The other ranks see no failure of the last one."""

    left = None

    def alltoall_base(self, *arguments):
        super().alltoall_base(*arguments).wait()
        if self.left is not None:
            self.left -= 1
            if not self.left:
                self.fail()

    def fail(self):
        raise RuntimeError("Connection reset by peer")


class Dying(Breaking):
    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)


MEETING, STATISTICS = 1, 2
"""Collectives before those of the exchange itself."""


def break_off():
    alone()
    go_back()
    for way in ("gather", "two-shot", "dense", "rotation", "two-shot, rotation"):
        broken, expected = (
            fail_on_one_rank(Job(f"{way}/{fails}", Breaking), way, fails=fails)
            for fails in (True, False)
        )
        for name in expected:
            if "rotation" in way:
                torch.testing.assert_close(broken[name], expected[name], atol=1e-5, rtol=1e-4)
            else:
                assert torch.equal(broken[name], expected[name]), (way, name)


def fail_on_one_rank(job, way, *, fails):
    """A rank that fails at the end of an exchange, which the others merge, goes on with them."""
    group = job.group(0, 1, 2, 3)
    options = {
        "two-shot": SIGMA | {"exchange": way},
        "dense": {"exchange": way},
        "rotation": SIGMA | {"rotation": 16},
        "two-shot, rotation": SIGMA | {"exchange": "two-shot", "rotation": 16},
    }
    net, outer, optimizer = begin(job, group, **options.get(way, SIGMA))
    # Bases turn after the third exchange.
    train(net, outer, optimizer, 11 if "rotation" in way else 7)
    if fails and job.rank == 1:
        group.left = MEETING + STATISTICS + (4 if "two-shot" in way else 2)
        with pytest.raises(gs.ExchangeError, match="Connection reset"):
            train(net, outer, optimizer, 1)
        with pytest.raises(gs.SieveError, match=r"call outer\.regroup\(group\) on all ranks"):
            outer.step()
    else:
        train(net, outer, optimizer, 1)
    outer.regroup(job.group(1, 2, 3, 0))
    regrouped = everything(net, outer)
    train(net, outer, optimizer, 3)
    outer.finish()
    assert all_alike(job, net, outer)
    # The last bits of turned residuals differ, and would decide what is sent.
    return regrouped if "rotation" in way else everything(net, outer)


def everything(net, outer):
    """What a rank knows, the progress that it holds in its weights counted as residual alone."""
    kept = {"residual": outer.state.residuals, "owned": outer.state.owned_residuals}
    kept |= {"own": own_of(outer), "weights": {}}
    for place, (name, weight) in enumerate(net.named_parameters()):
        kept["weights"][name] = weight.detach().clone()
        if outer._weights.holds(place):
            learned = weight.detach() - outer._weights.start(place)
            kept["weights"][name] = outer._weights.outer[place].detach() + learned
    return {(what, name): t for what, of in kept.items() for name, t in of.items()}


def go_back():
    """What a failed `regroup` has settled does not count for a checkpoint that is loaded then."""
    job = Job("back", Breaking)
    group = job.group(0, 1, 2, 3)
    net, outer, optimizer = begin(job, group, delay=1, **SIGMA)
    train(net, outer, optimizer, 7)
    model = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    saved, before = outer.state_dict(), everything(net, outer)
    if job.rank == 1:
        group.left = MEETING + STATISTICS + 2
    train(net, outer, optimizer, 1)
    told = Told()
    outer._groupings._receive = fail_to_receive
    with pytest.raises(gs.ExchangeError, match="the state of the source"):
        outer.regroup(Job("back, first", Breaking).group(0, 1, 2, 3))
    del outer._groupings._receive
    net.load_state_dict(model)
    outer.load_state_dict(saved)
    outer.regroup(Job("back, second", Breaking).group(0, 1, 2, 3))
    after = everything(net, outer)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert len(told.texts) == (job.rank == 1)
    assert all("could not end the exchange" in text for text in told.texts)


def fail_to_receive(*arguments, **options):
    raise gs.ExchangeError("could not receive the state of the source")


def test_a_rank_that_missed_the_end_of_an_exchange_goes_on_with_the_others():
    run_ranks(4, break_off)


def die_in_exchanges():
    alone()
    for way, victim in (("gather", 3), ("two-shot", 2), ("dense", 1)):
        job = Job(way, Dying)
        ranks = range(victim + 1)
        if job.rank > victim:
            continue
        group = job.group(*ranks)
        options = {"exchange": way, "threshold": gs.Sigma(1.0), "delay": 1}
        net, outer, optimizer = begin(job, group, **options)
        begun = train(net, outer, optimizer, 7)
        if job.rank == victim:
            # Once it has the sizes of all frames, all ranks have selected.
            group.left = MEETING + STATISTICS + 1
        before = unsent(outer, len(ranks))
        outer_before = {name: w.detach().clone() for name, w in outer._weights.named}
        with pytest.raises(gs.ExchangeError, match=r"could not exchange .* the group has ended"):
            train(net, outer, optimizer, 2)
        now = dict(net.named_parameters())
        learned = {
            name: outer._weights.start(place).detach() - now[name].detach()
            for place, name in enumerate(outer_before)
        }
        # Others, before they all meet.
        with pytest.raises(gs.ExchangeError, match="alone"):
            outer.regroup(Absent())
        found = outer.regroup(job.group(*range(victim)))
        assert found.left == (victim,)
        after = unsent(outer, victim)
        for name, weights in outer._weights.named:
            assert torch.equal(weights, outer_before[name]), "they go on from these"
            still = weights.detach() - now[name].detach()
            if name in before:
                still = still + after[name] - before[name]
            torch.testing.assert_close(still, learned[name], atol=1e-5, rtol=1e-4)
            if way != "dense":
                assert not torch.equal(after[name], before[name]), "what was to be sent"
        ended = train(net, outer, optimizer, 16)
        outer.finish()
        assert all_alike(job, net, outer)
        assert ended < begun


class Absent:
    def size(self):
        return 2

    def alltoall_base(self, *arguments):
        raise AssertionError("alone")


def test_when_a_rank_dies_the_others_go_on_from_the_last_outer_weights():
    run_ranks(4, die_in_exchanges)
