"""Training goes on with another number of ranks, and nothing that is owed is lost."""

import io

import pytest
import torch
import torch.distributed as dist
from local_steps import train as train_apart
from models import Crossed, Ledger, Net, batch, build, same_on_all_ranks, smaller_pieces
from ranks import run_ranks

import gradsieve as gs

CASES = {
    "gather": {"exchange": "gather", "threshold": gs.Sigma(1.0, of="balanced")},
    "two-shot": {"exchange": "two-shot", "threshold": gs.Density(0.1)},
    "two-shot, rotated": {"exchange": "two-shot", "threshold": gs.Density(0.1), "rotation": 16},
    "hierarchical": {"exchange": "hierarchical", "threshold": gs.UnsentMean(4.0)},
}
STEPS = 6
LOCAL = {"threshold": gs.Density(0.1), "exchange": "two-shot", "min_numel": 100, "every": 3}
LOCAL_CASES = {"local steps": LOCAL, "local steps, rotated": LOCAL | {"rotation": 16}}


def file_of(*things):
    file = io.BytesIO()
    torch.save(things, file)
    return file.getvalue()


def from_file(content):
    return torch.load(io.BytesIO(content), weights_only=True)


def owed(state):
    """By all ranks, in units of the averaged gradient."""
    parameters, total = state.sieve.parameters.states, {}
    for name, residual in state.residuals.items():
        dealt = parameters[name].dealt
        mine = residual.double() * (1 if dealt is None else dealt.size) / dist.get_world_size()
        total[name] = mine + state.owned_residuals[name]
        dist.all_reduce(total[name])
    return total


def start(case, node_size):
    model = build(Crossed)
    state = gs.SieveState(**{"rotation": 0, "min_numel": 100, "node_size": node_size} | CASES[case])
    state.bind(model)
    return model, state


def go_on(case, saved=None):
    """A few steps on these ranks, each of which loses nothing; what they save then."""
    ranks = dist.get_world_size()
    model, state = start(case, 2 if ranks == 4 else 1)
    if saved is not None:
        weights, states, before = saved
        model.module.load_state_dict(weights)
        state.load_state_dict(states[dist.get_rank()])
        for name, expected in before.items():
            scale = float(expected.abs().max())
            torch.testing.assert_close(owed(state)[name], expected, rtol=1e-5, atol=1e-5 * scale)
    ledger, optimizer = Ledger(model, state=state), torch.optim.SGD(model.parameters(), lr=0.1)
    first = state.step
    for step in range(first, first + STEPS):
        ledger.step(optimizer, batch(step), rtol=1e-4)
        assert same_on_all_ranks(model), case
    assert state.step == first + STEPS
    total = owed(state)
    assert all(kept.any() for kept in total.values())
    if case != "gather":
        pieces = [p.owned or p.dealt for p in state.sieve.parameters if not p.whole]
        assert any(pieces)
    return model.module.state_dict(), state.state_dict(), total


def local_steps(case, saved=None):
    torch.manual_seed(0)
    net = Net()
    outer = gs.OuterSync(net, **LOCAL_CASES[case])
    if saved is not None:
        weights, states, before = saved
        net.load_state_dict(weights)
        outer.load_state_dict(states[dist.get_rank()])
        for name, expected in before.items():
            torch.testing.assert_close(owed(outer.state)[name], expected, rtol=1e-5, atol=1e-6)
        assert not any(own.any() for own in own_of(outer).values()), "others have learned it"
    first = outer.inner_steps
    train_apart(net, outer, 7, first)
    middle = outer.state_dict()
    outer.finish()
    assert same_on_all_ranks(net)
    state, own = outer.state_dict(), own_of(outer)
    assert all(kept.any() for kept in own.values())
    return net.state_dict(), state, owed(outer.state), middle, own


def own_of(outer):
    """What this rank alone has learned and not sent."""
    found = {name: outer._exchange.unsent(name) for name in outer.state.residuals}
    return {name: own for name, own in found.items() if own is not None}


def require_own(contents):
    """With as many ranks as before each goes on with its own."""
    for case, (weights, states, owns) in from_file(contents)[0].items():
        net = Net()
        outer = gs.OuterSync(net, **LOCAL_CASES[case])
        net.load_state_dict(weights)
        outer.load_state_dict(states[dist.get_rank()])
        own = own_of(outer)
        assert own.keys() == owns[dist.get_rank()].keys()
        for name, expected in owns[dist.get_rank()].items():
            torch.testing.assert_close(own[name], expected, rtol=1e-5, atol=1e-6)
        train_apart(net, outer, 4, outer.inner_steps)
        assert not same_on_all_ranks(net)
        outer.finish()
        assert same_on_all_ranks(net)


def all_cases(contents=None):
    smaller_pieces()
    saved = {} if contents is None else from_file(contents)[0]
    found = {case: go_on(case, saved.get(case)) for case in CASES}
    return file_of(found | {case: local_steps(case, saved.get(case)) for case in LOCAL_CASES})


def resharded(outcomes, ranks):
    """What the next run loads: for each case the model, the states and what is owed."""
    runs = [from_file(outcome)[0] for outcome in outcomes]
    found = {}
    for case in runs[0]:
        weights, _, total, *_ = runs[0][case]
        found[case] = weights, gs.reshard([run[case][1] for run in runs], ranks), total
    return file_of(found)


def test_training_goes_on_with_another_number_of_ranks():
    of_four = run_ranks(4, all_cases)
    middle = [from_file(outcome)[0]["local steps"][3] for outcome in of_four]
    with pytest.raises(ValueError, match=r"rank 0's state is of the middle .* call finish\(\)"):
        gs.reshard(middle, 2)
    of_two = run_ranks(2, all_cases, resharded(of_four, 2))
    run_ranks(3, all_cases, resharded(of_two, 3))
    runs = [from_file(outcome)[0] for outcome in of_two]
    again = {
        case: (runs[0][case][0], gs.reshard([run[case][1] for run in runs], 2), owns)
        for case in LOCAL_CASES
        for owns in [[run[case][4] for run in runs]]
    }
    run_ranks(2, require_own, file_of(again))
