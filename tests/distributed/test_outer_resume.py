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
from gradsieve.saved.seal import sealed

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
    inherits = options.get("exchange") == "two-shot" and "rotation" in options
    assert bool(saved[2]["inherited"][0]) == inherits
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
        {"threshold": sigma, "exchange": "two-shot", "rotation": 16},
        {"threshold": sigma, "exchange": "two-shot", "rotation": 16, "fragments": 2, "delay": 2},
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


class Compiled(nn.Module):
    """As `torch.compile` holds a module."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


def forged(saved, changes, of_sieve=None):
    """With checksums of its own."""
    sieve = sealed(saved["sieve"] | (of_sieve or {}))
    return sealed(saved | {"sieve": sieve} | changes)


def forgeries(saved):
    """What makes no sense: a field, what it holds, and what is said."""
    one = next(iter(saved["weights"]))
    first = saved["weights"][one]
    for bad in (first * float("nan"), first.double(), first[0], None, first.to(torch.complex64)):
        yield "weights", saved["weights"] | {one: bad}, one
    yield "weights", {one: first}, "weights lacks"
    yield "model", (saved["model"][0] | {one: 1.5},), "model"
    yield "names", [*saved["names"][1:], saved["names"][0]], "another order"
    yield "names", saved["names"][1:], one
    yield "holding", (["nobody"],), "holding"
    yield "holding", ([1],), "holding"
    for bad in (first * float("nan"), first.double(), first[0], None):
        yield "inherited", ({one: bad},), "inherited"
    for bad in (None, [], {1: first}, {"nobody": first}):
        yield "inherited", (bad,), "inherited"
    yield "inherited", {}, "inherited must be a list of 1"
    yield "settings", [1], "settings"
    for field in ("every", "step", "place", "began", "since", "ends"):
        for bad in (-1, True, 2.0, "3", 10**6, [5]):
            if (field, bad) != ("step", 10**6):
                yield "schedule", saved["schedule"] | {field: bad}, field
    state, groups = (saved["optimizer"][0][field] for field in ("state", "param_groups"))
    buffer = state[0]["momentum_buffer"]
    for bad in (buffer * float("inf"), buffer[0], buffer.to(torch.complex64), 3.5, "x"):
        forged_state = state | {0: state[0] | {"momentum_buffer": bad}}
        yield "optimizer", ({"state": forged_state, "param_groups": groups},), "optimizer"
    yield (
        "optimizer",
        ({"state": state | {0: state[0] | {"step": "x"}}, "param_groups": groups},),
        ("optimizer"),
    )
    for bad_groups in (
        [],
        groups * 2,
        [groups[0] | {"params": [0, 1]}],
        [groups[0] | {"lr": float("nan")}],
        [groups[0] | {"lr": "fast"}],
        [{"params": groups[0]["params"]}],
    ):
        yield "optimizer", ({"state": state, "param_groups": bad_groups},), "optimizer"
    yield "optimizer", ({"state": {99: {}}, "param_groups": groups},), "optimizer.state"
    yield "optimizer", ({"param_groups": groups},), "optimizer lacks state"
    yield "optimizer", saved["optimizer"][0], "optimizer must be a list of 1"
    (under_way,) = saved["under_way"]
    yield "under_way", (None,), "schedule.ends"
    yield "under_way", None, "under_way must be a list of 1"
    for field in ("averages", "departed", "buffers"):
        tensor = under_way[field][0]
        for bad in ([], [tensor[:-1]], [tensor.int()], [tensor * float("nan")], tensor, [None]):
            bad = bad + under_way[field][1:] if isinstance(bad, list) and bad else bad
            yield "under_way", (under_way | {field: bad},), field
    for field in ("fragment", "every", "since"):
        for bad in (-1, 9.0, True, None):
            yield "under_way", (under_way | {field: bad},), field
    yield "under_way", (under_way | {"fragment": 5},), "fragment"
    yield "sieve", None, "gradsieve state"
    for field, value in saved.items():
        yield field, {"forged": value}, field if field != "sieve" else "gradsieve state"


def forged_states():
    """Each is refused in words, and changes nothing."""
    net, outer, optimizer = start(threshold=gs.Sigma(1.0), exchange="gather", delay=3)
    train(net, outer, 12, optimizer=optimizer)
    saved = through_a_file(outer)[0]
    assert saved["under_way"] != (None,)
    before = saved["checksum"]
    for field, bad, words in forgeries(saved):
        one = saved | {field: bad}
        with pytest.raises(ValueError, match=words):
            outer.load_state_dict(one if field == "checksum" else sealed(one))
        assert outer.state_dict()["checksum"] == before, (field, bad)
    # Without a checksum of its own.
    with pytest.raises(ValueError, match="damaged"):
        outer.load_state_dict(saved | {"schedule": saved["schedule"] | {"step": 11}})
    shifted = {n: p | {"threshold": 7.5} for n, p in saved["sieve"]["parameters"].items()}
    with pytest.raises(ValueError, match="damaged"):
        outer.load_state_dict(sealed(saved | {"sieve": saved["sieve"] | {"parameters": shifted}}))
    # The outer weights are those that the sieve was saved with.
    others = {name: weights + 1 for name, weights in saved["weights"].items()}
    with pytest.raises(ValueError, match="weights"):
        outer.load_state_dict(sealed(saved | {"weights": others}))
    assert outer.state_dict()["checksum"] == before
    outer.load_state_dict(saved)
    train(net, outer, 3, 12, optimizer)
    # A model that is wrapped otherwise takes it too.
    wrapped = nn.Sequential(Compiled(Net()))
    torch.manual_seed(0)
    other = gs.OuterSync(
        wrapped, every=5, min_numel=100, threshold=gs.Sigma(1.0), exchange="gather", delay=3
    )
    kept = outer.state_dict()
    for mine, theirs in zip(wrapped.parameters(), net.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    other.load_state_dict(kept)
    assert [*other.state.residuals] == [f"0.{name}" for name in outer.state.residuals]
    for mine, theirs in zip(
        other.state.residuals.values(), outer.state.residuals.values(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert on_every_rank(True)


def test_forged_states_are_refused_and_change_nothing():
    run_ranks(2, forged_states)


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
    for broken, words in (
        ({"version": 7}, "version 7"),
        ({}, "version None"),
        ({"version": 5, "weights": {}, "schedule": {}}, "lacks rank, world_size, settings, names"),
        (saved[1]["sieve"] | {"version": 5}, "lacks schedule, names"),
        (saved[1] | {"version": 4}, "of version 5, found version 4, which an older gradsieve"),
    ):
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(broken)
    assert other.inner_steps == 3
    options = {"every": 5, "threshold": gs.Sigma(1.0), "exchange": "gather", "min_numel": 100}
    for changes, words in (
        ({"delay": 1}, "delay was 0 and is 1 here"),
        ({"every": 6}, r"every was \[5, 5\] and is \[6, 6\] here"),
        ({"threshold": gs.Sigma(2.0)}, r"threshold was Sigma\(k=1.0.* and is Sigma\(k=2.0"),
        ({"optimizer": torch.optim.Adam}, "optimizer was Nesterov and is Adam here"),
    ):
        unlike = gs.OuterSync(fresh, **options | changes)
        before = unlike.state_dict()
        with pytest.raises(ValueError, match=words):
            unlike.load_state_dict(saved[1])
        assert unlike.state_dict()["checksum"] == before["checksum"]
    third = gs.OuterSync(nn.Linear(3, 4), **options)
    with pytest.raises(ValueError, match="another model"):
        third.load_state_dict(saved[1])
    others = [None] * 2
    dist.all_gather_object(others, saved)
    theirs = 1 - dist.get_rank()
    with pytest.raises(ValueError, match=f"the state of rank {theirs} of 2, loaded on rank"):
        other.load_state_dict(others[theirs][1])
    with pytest.raises(ValueError, match=r"loaded on rank . of 2: .*gs.reshard\(states, 2\)"):
        other.load_state_dict(forged(saved[1], {"world_size": 4}, {"world_size": 4}))
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
