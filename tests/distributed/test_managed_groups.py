"""Local steps in groups that others manage: ranks come and go between exchanges."""

import pytest
import torch
from local_steps import average, exact
from managed import (
    SIGMA,
    Forwarding,
    Job,
    Normed,
    all_alike,
    alone,
    begin,
    open_store,
    own_of,
    require_same,
    train,
    unsent,
)
from models import Net
from ranks import run_ranks
from torch import nn

import gradsieve as gs

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
