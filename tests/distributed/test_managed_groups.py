"""Local steps in groups that others manage: ranks come and go between exchanges."""

import logging
import os
import signal
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from local_steps import average, exact
from models import Net, smaller_pieces
from ranks import run_ranks
from torch import nn

import gradsieve as gs

BATCH = torch.randn(64, 20, generator=torch.Generator().manual_seed(7))
WANTED = BATCH[:, :5].relu()


class Forwarding(dist.ProcessGroup):
    """As a manager hands out its group: of unknown rank, and size 1 to torch."""

    def __init__(self, inner):
        super().__init__(0, 1)
        self.inner = inner

    def size(self):
        return self.inner.size()

    def alltoall_base(self, received, sent, arriving, leaving, options):
        return self.inner.alltoall_base(received, sent, arriving, leaving, options)


STORES = []
"""The store of this process."""


def open_store():
    """Open a store that rank 0 holds. All ranks call it together, in the group of the test."""
    os.environ["TEST_RANK"] = str(dist.get_rank())
    is_first = dist.get_rank() == 0
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if is_first else 0
    port = [store.port if is_first else 0]
    dist.broadcast_object_list(port)
    STORES.append(store or dist.TCPStore("127.0.0.1", port[0]))


def alone():
    """Only the groups that are made by hand are left."""
    open_store()
    dist.destroy_process_group()
    smaller_pieces()


class Job:
    """Makes groups of the ranks of a test by hand, each by a name that they share."""

    def __init__(self, name, wrap=lambda group: group):
        self.rank, self.wrap = int(os.environ["TEST_RANK"]), wrap
        self.store = dist.PrefixStore(name, STORES[0])

    def group(self, *ranks):
        """A group of these ranks, in this order; None for the others."""
        if self.rank not in ranks:
            return None
        self.ranks = ranks
        store = dist.PrefixStore(str(ranks), self.store)
        self.plain = dist.ProcessGroupGloo(
            store, ranks.index(self.rank), len(ranks), timedelta(seconds=40)
        )
        return self.wrap(self.plain)

    def agree(self, *tensors):
        mine = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        others = [torch.empty_like(mine) for _ in self.ranks]
        self.plain.allgather([others], [mine]).wait()
        return all(torch.equal(mine, other) for other in others)

    def barrier(self, name):
        """Wait for all ranks of the test, in a group or not."""
        for part in (name, f"{name} read"):
            self.store.set(f"{part}/{self.rank}", "here")
            if part == name or self.rank == 0:
                self.store.wait([f"{part}/{rank}" for rank in range(4)], timedelta(seconds=40))


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(40)

    def forward(self, x):
        return self.three(self.two(self.norm(self.one(x)).relu()).relu())


def begin(job, group, seed=0, **options):
    torch.manual_seed(10 * job.rank + seed)
    net = Normed()
    options = {"every": 4, "optimizer": average, "min_numel": 100} | options
    outer = gs.OuterSync(net, process_group=group, **options)
    assert job.agree(*net.parameters(), *net.buffers()), "they begin alike"
    return net, outer, torch.optim.Adam(net.parameters(), lr=0.01)


def loss_of(net):
    part = slice(int(os.environ["TEST_RANK"]) * 16, None)
    return (net(BATCH[part]) - WANTED[part]).square().mean()


def train(net, outer, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
        outer.step()
    return float(loss_of(net).detach())


def unsent(outer, ranks):
    """What a rank has not sent, in units of its own."""
    owned = outer.state.owned_residuals
    return {name: r + ranks * owned[name] for name, r in outer.state.residuals.items()}


def own_of(outer):
    """What a rank has not sent of its own."""
    found = {name: outer._exchange.unsent(name) for name in outer.state.residuals}
    return {name: own for name, own in found.items() if own is not None}


def require_same(found, expected, *, is_exact=False):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if is_exact:
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def all_alike(job, net, outer):
    scale = torch.tensor([outer.state.sieve.thresholds.scale])
    bases = [
        basis
        for parameter in outer.state.sieve.parameters
        if parameter.rotation is not None
        for basis in parameter.rotation.save().values()
        if isinstance(basis, torch.Tensor)
    ]
    outer_weights = [weights for _, weights in outer._weights.named]
    statistics = [net.norm.running_mean, net.norm.running_var]
    return job.agree(*net.parameters(), *statistics, *outer_weights, scale, *bases)


SIGMA = {"threshold": gs.Sigma(1.0), "exchange": "gather"}
WAYS = {
    "gather": SIGMA,
    "rotation": SIGMA
    | {
        "rotation": 16,
        "delay": 1,
        "optimizer": lambda weights: torch.optim.SGD(weights, lr=0.7, momentum=0.5),
    },
    "two-shot": SIGMA | {"exchange": "two-shot", "fragments": 2, "delay": 2},
    "two-shot, rotation": SIGMA | {"exchange": "two-shot", "rotation": 16},
    "auto": {"every": (4, 6), "threshold": gs.Budget("auto")},
}


def come_and_go(folder):
    alone()
    for way, options in WAYS.items():
        job = Job(way, Forwarding if way in ("gather", "auto") else lambda group: group)
        leave_and_return(job, way, options, f"{folder}/{way}")


def leave_and_return(job, way, options, folder):
    net, outer, optimizer = begin(job, job.group(0, 1, 2, 3), **options)
    begun = train(net, outer, optimizer, 5)
    outer.finish()
    assert all_alike(job, net, outer), way
    train(net, outer, optimizer, 5)
    assert outer.is_exchanging == (way == "two-shot")
    before, exchanges = unsent(outer, 4), outer.state.totals.steps
    own = own_of(outer)
    assert way == "auto" or any(kept.any() for kept in own.values())
    job.barrier("three")
    ahead = int(way == "rotation")
    if ahead and job.rank == 1:
        # It has come further than the others, which take its schedule.
        train(net, outer, optimizer, 1)
    three = job.group(2, 0, 1)
    if three is not None:
        found = outer.regroup(three)
        assert (found.size, found.left, found.joined) == (3, (3,), ())
        assert found.rank == (1, 2, 0)[job.rank]
        if way != "two-shot":
            # There the exchange under way has ended meanwhile.
            require_same(own_of(outer), own)
        require_same(unsent(outer, 3), before, is_exact="rotation" not in options)
        assert not outer.is_exchanging
        assert outer.inner_steps == 10 + ahead
        train(net, outer, optimizer, 5)
        outer.finish()
        assert all_alike(job, net, outer), way
        assert outer.state.totals.steps > exchanges
        train(net, outer, optimizer, 2)
    job.barrier("four")
    four = job.group(3, 1, 0, 2)
    if three is None:
        net, outer, optimizer = begin_late(job, four, **options)
        assert outer.inner_steps == 17 + ahead
    else:
        before, own = unsent(outer, 3), own_of(outer)
        found = outer.regroup(four)
        assert (found.joined, found.left, found.source) == ((0,), (), 1)
        require_same(own_of(outer), own)
        require_same(unsent(outer, 4), before, is_exact="rotation" not in options)
    weights = [weights for _, weights in outer._weights.named]
    assert job.agree(*weights), "newcomers take the outer weights"
    ended = train(net, outer, optimizer, 12)
    outer.finish()
    assert all_alike(job, net, outer), way
    assert ended < begun, way
    saved = outer.state_dict()
    assert (saved["rank"], saved["world_size"]) == (job.ranks.index(job.rank), 4)
    outer.load_state_dict(saved)
    save_in_one_folder(outer, folder)
    job.barrier("end")


def save_in_one_folder(outer, folder):
    """Without a default process group every rank is rank 0 of its job."""
    file = gs.checkpoint.save(outer, folder)
    assert file.name == f"sieve-replica{outer.managed_rank}-rank0.pt"
    gs.checkpoint.load(outer, folder)
    per_rank = gs.checkpoint.PerRank(outer)
    for call in (per_rank.state_dict, lambda: per_rank.load_state_dict({})):
        with pytest.raises(gs.SieveError, match=r"others manage: call gs\.checkpoint\.save"):
            call()
    with pytest.raises(gs.SieveError, match=r"gathered_state_dict\(\) needs .* default process"):
        outer.gathered_state_dict()


def begin_late(job, group, **options):
    torch.manual_seed(99)
    net = Normed()
    options = {"every": 4, "optimizer": average, "min_numel": 100} | options
    outer = gs.OuterSync(net, process_group=group, **options)
    return net, outer, torch.optim.Adam(net.parameters(), lr=0.01)


def test_ranks_leave_and_return(tmp_path):
    run_ranks(4, come_and_go, str(tmp_path))


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
    logging.getLogger("gradsieve").addHandler(told)
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


class Told(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


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


def refuse():
    open_store()
    job = Job("refuse", Forwarding)
    group = job.group(0, 1)
    sieve = gs.SieveState(process_group=group)
    ddp = nn.parallel.DistributedDataParallel(Net())
    with pytest.raises(gs.SieveError, match=r"weights would diverge\. Let .*fully_shard"):
        gs.OuterSync(ddp, process_group=group)
    with pytest.raises(gs.SieveError, match=r"others manage it.*only gs\.OuterSync"):
        sieve.bind(ddp)
    with pytest.raises(ValueError, match="form no nodes"):
        gs.OuterSync(Net(), process_group=group, exchange="hierarchical")
    with pytest.raises(gs.SieveError, match=r"torch\.distributed has made"):
        gs.OuterSync(Net(), threshold=gs.Sigma(1.0)).regroup(group)
    outer = gs.OuterSync(Net(), process_group=group, **exact(every=2))
    outer.state.exchange = "hierarchical"
    with pytest.raises(ValueError, match="form no nodes"):
        outer.regroup(group)
    outer.state.exchange = ("gather", "two-shot")[job.rank]
    with pytest.raises(gs.SieveError, match="rank 1 has exchange="):
        outer.regroup(group)
    with pytest.raises(gs.SieveError, match=r"call outer\.regroup"):
        outer.step()
    outer.state.exchange = "gather"
    outer.regroup(group)
    outer.step()
    for other in (None, [0, 1]):
        with pytest.raises(TypeError, match=r"has the methods size\(\) and alltoall_base\(\)"):
            outer.regroup(other)
    outer.step()
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20 + job.rank).requires_grad_(False))
    with pytest.raises(gs.SieveError, match=r"rank 1 has 1\.weight \[21, 20\] .* \(frozen\)"):
        gs.OuterSync(net, process_group=group)


def test_what_managed_groups_cannot_do_is_refused():
    run_ranks(2, refuse)
