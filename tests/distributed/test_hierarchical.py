"""Ranks that share a machine add up among themselves before anything leaves it."""

import copy
import math
import os

import pytest
import torch
import torch.distributed as dist
from models import Crossed, batch, build, same_on_all_ranks, smaller_pieces, train, weights
from ranks import run_ranks

import gradsieve as gs

SETTINGS = {"min_numel": 100, "exchange": "hierarchical", "node_size": 2, "rotation": 0}


def one_residual_a_node():
    smaller_pieces()
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.05), **SETTINGS)
    train(model, 5)
    assert state.last.exchange == "hierarchical"
    assert state.last.add_seconds > 0
    assert same_on_all_ranks(model)
    return {name: (residual != 0).numpy() for name, residual in state.residuals.items()}


def test_each_rank_of_a_node_keeps_a_piece_of_the_residual():
    first, second, *_ = run_ranks(4, one_residual_a_node)
    for name, mine in first.items():
        assert not (mine & second[name]).any()
        assert (mine | second[name]).mean() > 0.8


def resumed(rotation):
    smaller_pieces()
    settings = SETTINGS | {"rotation": rotation}

    def start():
        model = build(Crossed)
        state = gs.attach(model, threshold=gs.Sigma(1.0, of="balanced"), **settings)
        return model, state, torch.optim.Adam(model.parameters(), lr=0.01)

    model, state, optimizer = start()
    train(model, 7, optimizer=optimizer)
    saved = copy.deepcopy([part.state_dict() for part in (model, state, optimizer)])
    again, resumed_state, resumed_optimizer = start()
    again.load_state_dict(saved[0])
    resumed_state.load_state_dict(saved[1])
    resumed_optimizer.load_state_dict(saved[2])
    train(model, 5, first=7, optimizer=optimizer)
    train(again, 5, first=7, optimizer=resumed_optimizer)
    assert torch.equal(weights(again), weights(model))
    for name, residual in state.residuals.items():
        assert torch.equal(resumed_state.residuals[name], residual)


@pytest.mark.parametrize("rotation", [0, 16])
def test_resume_is_exact(rotation):
    run_ranks(4, resumed, rotation)


def overflow_on_one_rank(rotation):
    smaller_pieces()
    model = build()
    settings = SETTINGS | {"rotation": rotation}
    state = gs.attach(model, threshold=gs.Density(0.05), **settings)
    train(model, 3)
    before = dict(state.residuals)
    bad = batch(3)
    if dist.get_rank() == 2:
        bad[0, 0] = math.inf
    model.zero_grad()
    model(bad).square().mean().backward()
    assert not model.module.one.weight.grad.isfinite().all()
    assert all(residual.isfinite().all() for residual in state.residuals.values())
    assert all(torch.equal(residual, before[name]) for name, residual in state.residuals.items())
    sources = state.last.nonfinite_parameters
    assert list(sources) == [2]
    assert "one.weight" in sources[2]
    # Only of this rank's own gradient, though its node's mean holds them as well.
    assert (state.last.nonfinite > 0) == (dist.get_rank() == 2)
    elements = sum(p.numel() for p in model.parameters())
    assert state.last.nonfinite <= elements
    # A training loop with a scaler of its loss would skip this step.
    train(model, 3, first=4)
    assert same_on_all_ranks(model)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize("rotation", [0, 16])
def test_an_overflow_on_one_rank_reaches_all_and_no_residual(rotation):
    run_ranks(4, overflow_on_one_rank, rotation)


def uneven_nodes():
    with pytest.raises(gs.SieveError, match="3 ranks state nodes of 2 ranks"):
        train_with(node_size=2)
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    with pytest.raises(gs.SieveError, match="LOCAL_WORLD_SIZE"):
        train_with(node_size=None)
    with pytest.raises(ValueError, match="node_size must be 1 or more"):
        train_with(node_size=0)


def train_with(node_size):
    model = build()
    gs.attach(model, exchange="hierarchical", node_size=node_size)
    train(model, 1)


def test_ranks_that_do_not_fall_into_nodes_are_told_so():
    run_ranks(3, uneven_nodes)


def nodes_of_other_sizes():
    # On a rank alone this would be a size that fits.
    with pytest.raises(gs.SieveError, match="2 ranks state nodes of 1, 2 ranks"):
        train_with(node_size=2 if dist.get_rank() else 1)


def test_ranks_with_other_nodes_are_told_so():
    run_ranks(2, nodes_of_other_sizes)


def one_node_and_nodes_of_one():
    for size in (1, dist.get_world_size()):
        model = build()
        state = gs.attach(model, threshold=gs.Density(0.05), **SETTINGS | {"node_size": size})
        train(model, 4)
        assert same_on_all_ranks(model)
        assert 0 < state.last.density < 0.5


def test_a_single_node_and_nodes_of_a_single_rank():
    run_ranks(2, one_node_and_nodes_of_one)


def chosen():
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.05), min_numel=100, exchange="auto")
    records = []
    state.on_step = records.append
    train(model, 40)
    assert same_on_all_ranks(model)
    return [record.exchange for record in records]


def test_auto_counts_it_among_the_topologies():
    mine, *others = run_ranks(4, chosen)
    assert others == [mine] * 3
    assert set(mine) <= {"hierarchical", "gather", "two-shot", "dense"}


def machines_of_unlike_sizes(exchange):
    """As where one machine has one rank and the other two."""
    os.environ["LOCAL_WORLD_SIZE"] = "1" if dist.get_rank() == 2 else "2"
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.05), min_numel=100, exchange=exchange)
    train(model, 12)
    assert same_on_all_ranks(model)
    assert state.last.exchange != "hierarchical"


@pytest.mark.parametrize("exchange", ["gather", "auto"])
def test_machines_of_unlike_sizes_exchange_with_another_topology(exchange):
    run_ranks(3, machines_of_unlike_sizes, exchange)
