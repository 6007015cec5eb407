"""The laws of the design: nothing is lost, replicas agree, threshold 0 is DDP."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    Crossed,
    Ledger,
    Net,
    batch,
    build,
    same_on_all_ranks,
    smaller_pieces,
    train,
    weights,
)
from ranks import run_ranks

import gradsieve as gs
from gradsieve.bucket.average import Contribution, average_into
from gradsieve.bucket.plan import Piece
from gradsieve.codec import VALUES, decode_frame, encode_frame, pruned_section, whole_section

POLICIES = [
    gs.Fixed(0.0),
    gs.Fixed(0.01),
    gs.Sigma(2.0),
    gs.Sigma(2.0, of="accumulated"),
    gs.UnsentMean(1.0),
    gs.UnsentMean(4.0),
    gs.Density(0.05),
]


def threshold_zero_and_every_policy(exchange):
    smaller_pieces()
    plain = build()
    train(plain, 5)
    sieved = build()
    settings = {"min_numel": 100, "exchange": exchange, "node_size": 2 - dist.get_world_size() % 2}
    state = gs.attach(sieved, threshold=gs.Fixed(0.0), values="float32", **settings)
    train(sieved, 5)
    assert state.step == 5
    assert all(not residual.any() for residual in state.residuals.values())
    torch.testing.assert_close(weights(sieved), weights(plain), rtol=1e-5, atol=1e-6)

    for policy in POLICIES:
        for values in VALUES:
            for error_feedback in (True, False):
                model = build()
                gs.attach(
                    model,
                    threshold=policy,
                    values=values,
                    error_feedback=error_feedback,
                    **settings,
                )
                train(model, 3)
                assert same_on_all_ranks(model), (policy, values)


@pytest.mark.parametrize(
    ("count", "exchange"),
    [(2, "gather"), (3, "gather"), (3, "two-shot"), (4, "hierarchical")],
)
def test_threshold_zero_is_ddp_and_replicas_agree(count, exchange):
    run_ranks(count, threshold_zero_and_every_policy, exchange)


def nothing_is_lost(exchange):
    smaller_pieces()
    for policy in POLICIES:
        for values in VALUES:
            model = build(Crossed)
            node_size = 2 - dist.get_world_size() % 2
            ledger = Ledger(
                model,
                threshold=policy,
                values=values,
                exchange=exchange,
                node_size=node_size,
                min_numel=100,
            )
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(4):
                ledger.step(optimizer, batch(step))


@pytest.mark.parametrize(
    ("count", "exchange"), [(3, "gather"), (3, "two-shot"), (4, "hierarchical")]
)
def test_nothing_is_lost_across_ranks(count, exchange):
    run_ranks(count, nothing_is_lost, exchange)


EXCHANGES = ("two-shot", "gather", "two-shot", "dense", "dense", "gather", "two-shot", "dense-fp16")
NODE_EXCHANGES = ("hierarchical", "hierarchical", "two-shot", "hierarchical", "dense", "gather")


def change_exchanges(rotation, exchanges, node_size):
    smaller_pieces()
    plain, sieved = build(), build()
    train(plain, 1)
    gs.attach(sieved, exchange="dense")
    train(sieved, 1)
    torch.testing.assert_close(weights(sieved), weights(plain), rtol=1e-6, atol=1e-7)

    model = build(Crossed)
    settings = {"min_numel": 100, "rotation": rotation, "node_size": node_size}
    ledger = Ledger(model, threshold=gs.Density(0.05), **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, exchange in enumerate(exchanges):
        ledger.state.exchange = exchange
        rtol = 2e-3 if exchange == "dense-fp16" else 1e-4 if rotation else 1e-5
        ledger.step(optimizer, batch(step), rtol=rtol)
        assert same_on_all_ranks(model), exchange
        kept = [*ledger.state.residuals.values(), *ledger.state.owned_residuals.values()]
        assert any(residual.any() for residual in kept) != exchange.startswith("dense")
        assert ledger.state.last.plain == exchange.startswith("dense")


@pytest.mark.parametrize("rotation", [0, 16])
def test_nothing_is_lost_when_the_exchange_changes(rotation):
    run_ranks(3, change_exchanges, rotation, EXCHANGES, 1)


@pytest.mark.parametrize("rotation", [0, 16])
def test_nothing_is_lost_when_nodes_come_into_it(rotation):
    """Long enough for the bases to turn."""
    run_ranks(4, change_exchanges, rotation, 2 * NODE_EXCHANGES, 2)


def choose_exchanges():
    smaller_pieces()
    model = build(Crossed)
    ledger = Ledger(model, threshold=gs.Budget("auto"), min_numel=100, rotation=16, exchange="auto")
    records = []
    ledger.state.on_step = records.append
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(60):
        ledger.step(optimizer, batch(step), rtol=1e-4)
    assert same_on_all_ranks(model)
    exchanges = [record.exchange for record in records]
    assert set(exchanges) <= {"gather", "two-shot", "dense"}
    assert all(record.reason for record in records)
    return exchanges


def test_ranks_choose_the_same_topology_and_lose_nothing():
    mine, *others = run_ranks(3, choose_exchanges)
    assert others == [mine, mine]


def one_rank_alone():
    model = build(Net)
    state = gs.attach(model, threshold=gs.Density(0.05), min_numel=100)
    plain = copy.deepcopy(model.module)
    train(model, 3)
    assert not torch.equal(weights(model), weights(plain))
    alone = build(Net)
    train(alone, 3)
    assert torch.equal(weights(model), weights(alone))
    assert (state.last.exchange, state.last.frame_bytes) == ("dense", 0)
    assert "nobody to send to" in state.last.reason
    assert not any(residual.any() for residual in state.residuals.values())


def test_a_rank_alone_has_nobody_to_prune_for():
    run_ranks(1, one_rank_alone)


def two_groups_of_two(by_hand):
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine = groups[rank // 2]
    model = build(process_group=mine)
    if by_hand:
        state = gs.SieveState(threshold=gs.Density(0.1), min_numel=100)
        model.register_comm_hook(state, gs.sieve_hook)
        state.bind(model)
    else:
        state = gs.attach(model, threshold=gs.Density(0.1), min_numel=100)
    train(model, 3)
    other = [None] * 4
    dist.all_gather_object(other, weights(model))
    assert not torch.equal(other[0], other[2])
    gathered = [None] * 2
    dist.all_gather_object(gathered, weights(model), group=mine)
    assert torch.equal(*gathered)
    return state.last.density


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_ranks_of_the_models_group_exchange(by_hand):
    assert all(density > 0 for density in run_ranks(4, two_groups_of_two, by_hand))


magnitudes = st.floats(-(2.0**20), 2.0**20, width=32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_whatever_the_gradients(data):
    """Ranks in one process, several steps, a bucket of two pruned and one whole parameter."""
    ranks = data.draw(st.integers(1, 4), label="ranks")
    mode = data.draw(st.sampled_from(VALUES), label="mode")
    numels = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=2), label="numels")
    total_numel = sum(numels) + 3
    residuals = [[torch.zeros(numel) for numel in numels] for _ in range(ranks)]
    for step in range(3):
        frames, sent = [], np.zeros(total_numel)
        for rank in range(ranks):
            sections, expected = [], []
            for residual in residuals[rank]:
                numbers = data.draw(
                    st.lists(magnitudes, min_size=len(residual), max_size=len(residual))
                )
                threshold = data.draw(st.floats(0, 2.0**20, width=32))
                gradient = torch.tensor(numbers)
                accumulated = residual + gradient
                indices, values, _ = gs.select(gradient, residual, threshold)
                section = pruned_section(
                    indices.numpy(),
                    values.numpy(),
                    len(residual),
                    threshold,
                    mode,
                    residual=residual.numpy(),
                )
                places, arriving = section.survivors()
                mine = torch.zeros(len(residual))
                mine[torch.from_numpy(places).long()] = torch.from_numpy(arriving)
                rounding = 2**-23 * (mine.abs() + accumulated.abs()) + 2**-126
                assert ((mine + residual - accumulated).abs() <= rounding).all()
                expected.append(mine)
                sections.append(section)
            whole = torch.tensor(data.draw(st.lists(magnitudes, min_size=3, max_size=3)))
            sections.append(whole_section(whole.numpy(), "float32"))
            sent += torch.cat([*expected, whole]).double().numpy()
            frames.append(decode_frame(encode_frame(sections, step=step), numels=[*numels, 3]))
        part = [Piece(number, 0, numel) for number, numel in enumerate([*numels, 3])]
        added = [Contribution(frame, part, 1 / ranks) for frame in frames]
        buffer = torch.full((total_numel,), 7.0)
        average_into(buffer, added, [None] * 3)
        for threads in (2, 8):
            other = torch.full((total_numel,), 7.0)
            average_into(other, added, [None] * 3, threads)
            assert torch.equal(other, buffer)
        np.testing.assert_allclose(
            buffer.numpy() * ranks, sent, rtol=1e-5, atol=1e-6 * np.abs(sent).max()
        )
