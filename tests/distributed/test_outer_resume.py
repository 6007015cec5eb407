"""Local steps: stop, load, go on, in the middle of a phase and of an exchange."""

import io
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from local_steps import train
from models import on_every_rank, same_on_all_ranks, smaller_pieces, weights
from ranks import run_ranks
from torch import nn

import gradsieve as gs

STEPS = 17


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 40)
        self.norm = nn.BatchNorm1d(40)
        self.two = nn.Linear(40, 5)

    def forward(self, x):
        return self.two(self.norm(self.one(x)).relu())


def start(*, dtype=torch.float32, **options):
    torch.manual_seed(0)
    net = Net().to(dtype)
    outer = gs.OuterSync(net, every=5, min_numel=100, **options)
    return net, outer, torch.optim.Adam(net.parameters(), lr=0.01)


def through_a_file(*things):
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in things], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def everything(net, outer):
    return torch.cat(
        [
            weights(net),
            net.norm.running_mean,
            *(w.detach().flatten() for _, w in outer._weights.named),
            *(r.flatten() for r in outer.state.residuals.values()),
            *(r.flatten() for r in outer.state.owned_residuals.values()),
        ]
    )


def resume(saved_after, **options):
    net, outer, optimizer = start(**options)
    train(net, outer, STEPS, optimizer=optimizer)
    expected = everything(net, outer)

    net, outer, optimizer = start(**options)
    train(net, outer, saved_after, optimizer=optimizer)
    saved = through_a_file(net, optimizer, outer)
    # Saving changes nothing.
    train(net, outer, STEPS - saved_after, saved_after, optimizer)
    assert torch.equal(everything(net, outer), expected)

    net, outer, optimizer = start(**options)
    net.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    outer.load_state_dict(saved[2])
    assert outer.inner_steps == saved_after
    train(net, outer, STEPS - saved_after, saved_after, optimizer)
    assert torch.equal(everything(net, outer), expected), options
    outer.finish()
    assert same_on_all_ranks(net)


def every_way_to_resume():
    smaller_pieces()
    sigma = gs.Sigma(1.0)
    for options in (
        {"threshold": sigma, "exchange": "gather"},
        {"threshold": gs.UnsentMean(4.0), "exchange": "gather", "delay": 3},
        {"threshold": sigma, "exchange": "two-shot", "delay": 2},
        {
            "threshold": gs.Sigma(1.0, of="balanced"),
            "exchange": "gather",
            "fragments": 2,
            "delay": 2,
        },
        {"exchange": "dense", "delay": 3},
        {"threshold": sigma, "exchange": "gather", "dtype": torch.bfloat16, "delay": 1},
        {"threshold": sigma, "exchange": "gather", "rotation": 16, "delay": 1},
    ):
        # In a phase; where an exchange is under way; between its ends and the next.
        for saved_after in (7, 11, 14):
            resume(saved_after, **options)


def test_resume_is_exact():
    run_ranks(2, every_way_to_resume)


def resume_between_nodes():
    smaller_pieces()
    options = {"threshold": gs.Sigma(1.0), "exchange": "hierarchical", "node_size": 2}
    for saved_after in (7, 11):
        resume(saved_after, delay=2, **options)


def test_resume_between_nodes_is_exact():
    run_ranks(4, resume_between_nodes)


def refusals():
    net, outer, optimizer = start(threshold=gs.Sigma(1.0), exchange="gather")
    train(net, outer, 3, optimizer=optimizer)
    saved = through_a_file(net, outer)
    fresh, other, _ = start(threshold=gs.Sigma(1.0), exchange="gather")
    with pytest.raises(ValueError, match="make OuterSync first, then load the model"):
        other.load_state_dict(saved[1])
    assert other.inner_steps == 0
    fresh.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for broken, words in (({"version": 7}, "version 7"), ({}, "version None")):
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(broken)
    with pytest.raises(ValueError, match="lacks checksum, optimizer"):
        other.load_state_dict({"version": 1, "weights": {}, "schedule": {}})
    assert other.inner_steps == 3
    later = gs.OuterSync(fresh, every=5, delay=1, threshold=gs.Sigma(1.0), exchange="gather")
    with pytest.raises(ValueError, match=r"other phases .* \[5, 5, 1, 0\], .* \[5, 5, 1, 1\]"):
        later.load_state_dict(saved[1])
    third = gs.OuterSync(nn.Linear(3, 4), every=5, threshold=gs.Sigma(1.0), exchange="gather")
    with pytest.raises(ValueError, match="another model"):
        third.load_state_dict(saved[1])
    others = [None] * 2
    dist.all_gather_object(others, saved)
    theirs = 1 - dist.get_rank()
    with pytest.raises(ValueError, match=f"the state of rank {theirs}, loaded on rank"):
        other.load_state_dict(others[theirs][1])
    adam = gs.OuterSync(
        fresh, every=5, optimizer=torch.optim.Adam, threshold=gs.Sigma(1.0), exchange="gather"
    )
    with pytest.raises(ValueError, match="saved outer optimizer is SGD, this one is Adam"):
        adam.load_state_dict(saved[1])
    for call in (outer.state.state_dict, lambda: outer.state.load_state_dict(saved[1]["sieve"])):
        with pytest.raises(gs.SieveError, match=r"save and load outer.state_dict\(\)"):
            call()
    # A rank that ends now may be one that another still connects to.
    assert on_every_rank(True)


def keep_and_go_back():
    """A state that is kept in memory stays as it was; what was told is not told again."""
    net, outer, optimizer = start(threshold=gs.Sigma(1.0), exchange="gather", delay=3)
    told = []
    outer.on_step = lambda record: told.append((record.step, record.exchange.step))
    train(net, outer, 11, optimizer=optimizer)
    kept = outer.state_dict()
    copies = deepcopy([net.state_dict(), optimizer.state_dict()])
    train(net, outer, 6, 11, optimizer)
    expected = everything(net, outer)
    for thing, copy in zip((net, optimizer), copies, strict=True):
        thing.load_state_dict(copy)
    outer.load_state_dict(kept)
    train(net, outer, 6, 11, optimizer)
    assert torch.equal(everything(net, outer), expected)
    assert told == [(5, 0), (10, 1)]


def test_a_state_in_memory_is_one_to_go_back_to():
    run_ranks(2, keep_and_go_back)


def test_what_cannot_be_loaded_is_refused():
    run_ranks(2, refusals)
