"""Another number of ranks: what is owed stays the same, and what is not one run is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradsieve as gs
from gradsieve.saved.seal import sealed

RANKS = st.integers(1, 6)


def model():
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last)
    return nn.Sequential(convolution, nn.Linear(20, 12), nn.PReLU(200), nn.Linear(2, 2))


def saved_by(rank, ranks, seed, rotation=0):
    """As if this rank had trained, with every kind of piece."""
    state = gs.SieveState(threshold=gs.Sigma(2.0), min_numel=100, rotation=rotation)
    state.bind(model())
    for parameter in state.sieve.parameters:
        if parameter.rotation is not None:
            # The same on all ranks.
            same = torch.randn(parameter.numel, generator=torch.Generator().manual_seed(seed))
            parameter.rotation.learn(same)
            parameter.rotation.turn([])
    state.step = 5
    saved = state.state_dict()
    generator = torch.Generator().manual_seed(100 * seed + rank)
    for number, parameter in enumerate(saved["parameters"].values()):
        residual = parameter["residual"]
        if residual is None:
            continue
        residual.copy_(torch.randn(residual.shape, generator=generator))
        parameter["threshold"], parameter["mean_square"] = float(rank), 1.0 + rank
        cut = residual.numel() // ranks
        if (number + seed) % 3 == 1:
            pruned = torch.randn(cut, generator=generator)
            parameter["owned"] = (rank * cut, pruned)
        elif (number + seed) % 3 == 2:
            # Two ranks a node, where there are as many.
            size = 2 if ranks % 2 == 0 else 1
            cut = residual.numel() // size
            start = rank % size * cut
            parameter["dealt"] = (start, start + cut, size)
            flat = in_memory(residual, parameter["stride"])
            flat[:start], flat[start + cut :] = 0, 0
            residual.copy_(flat.as_strided(residual.shape, parameter["stride"]))
    return sealed(saved | {"rank": rank, "world_size": ranks})


def in_memory(residual, stride):
    laid_out = torch.empty_strided(residual.shape, stride, dtype=residual.dtype)
    return laid_out.copy_(residual).as_strided((residual.numel(),), (1,)).clone()


def owed(states):
    """What the average of the ranks lacks, by parameter: float64, in the order in memory."""
    total = {}
    for state in states:
        for name, parameter in state["parameters"].items():
            if parameter["residual"] is None:
                continue
            times = 1 if parameter["dealt"] is None else parameter["dealt"][2]
            flat = in_memory(parameter["residual"].double(), parameter["stride"])
            flat *= times / len(states)
            if parameter["owned"] is not None:
                start, pruned = parameter["owned"]
                flat[start : start + pruned.numel()] += pruned
            total[name] = total.get(name, 0) + flat
    return total


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([[4, 3, 2, 4]]) | st.lists(RANKS, min_size=2, max_size=4),
    st.integers(0, 5),
    st.sampled_from([0, 8]),
)
def test_what_is_owed_stays_the_same(ranks, seed, rotation):
    states = [saved_by(rank, ranks[0], seed, rotation) for rank in range(ranks[0])]
    expected = owed(states)
    assert all(flat.any() for flat in expected.values())
    for size in ranks[1:]:
        states = gs.reshard(states[::-1], size)
        assert [(state["rank"], state["world_size"]) for state in states] == [
            (rank, size) for rank in range(size)
        ]
        for name, flat in owed(states).items():
            torch.testing.assert_close(flat, expected[name], rtol=1e-6, atol=2e-6)
        for state in states:
            for parameter in state["parameters"].values():
                assert parameter["owned"] is None
                assert parameter["dealt"] is None
    if states[0]["world_size"] == 1:
        again = gs.SieveState(threshold=gs.Sigma(2.0), min_numel=100, rotation=rotation)
        again.bind(model())
        again.load_state_dict(states[0])
        assert again.step == 5


def test_thresholds_come_from_the_nearest_rank_and_moments_of_pieces_go():
    states = [saved_by(rank, 4, 0) for rank in range(4)]
    halves = gs.reshard(states, 2)
    thresholds = [half["parameters"]["0.weight"]["threshold"] for half in halves]
    assert thresholds == [0.0, 2.0]
    small = [state["parameters"]["3.weight"]["residual"] for state in states]
    # Each holds a piece for two ranks.
    assert torch.equal(halves[0]["parameters"]["3.weight"]["residual"], small[0] + small[1])
    assert not any(halves[1]["note"])


def test_resharding_to_as_many_ranks_keeps_plain_residuals_bit_for_bit():
    states = [saved_by(rank, 3, 0) for rank in range(3)]
    for old, new in zip(states, gs.reshard(states, 3), strict=True):
        for name, parameter in old["parameters"].items():
            if parameter["owned"] is None and parameter["dealt"] is None:
                same = new["parameters"][name]["residual"], parameter["residual"]
                assert same == (None, None) or torch.equal(*same)
    assert gs.reshard(states, 3)[1]["checksum"] != states[1]["checksum"]


def test_what_was_given_is_left_as_it_was():
    states = [saved_by(rank, 2, 1) for rank in range(2)]
    before = [state["checksum"] for state in states]
    for state in gs.reshard(states, 2):
        for parameter in state["parameters"].values():
            if parameter["residual"] is not None:
                parameter["residual"].zero_()
    assert [sealed(state)["checksum"] for state in states] == before


def states_of(ranks=3, **changes):
    states = [saved_by(rank, ranks, 0, rotation=8) for rank in range(ranks)]
    return [*states[:-1], sealed(states[-1] | changes)]


def other_weights():
    state = states_of()[-1]
    return states_of(weights=(state["weights"][0] | {"0.weight": 1},))


def other_bases():
    states = states_of()
    rotation = states[1]["parameters"]["1.weight"]["rotation"]
    rotation["covariances"][0][0, 0] += 1
    return [states[0], sealed(states[1]), states[2]]


def other_parameters():
    states = states_of()
    del states[1]["parameters"]["0.weight"], states[1]["weights"][0]["0.weight"]
    return [states[0], sealed(states[1]), states[2]]


def no_residual():
    states = states_of()
    parameter = states[1]["parameters"]["2.weight"]
    parameter.update(residual=None, stride=None, owned=None, dealt=None, rotation=None)
    return [states[0], sealed(states[1]), states[2]]


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "none"),
        (states_of()[1:], "of 3 ranks, and those of ranks 0 are missing"),
        (states_of()[:1], "those of ranks 1, 2 are missing"),
        ([*states_of(), states_of()[0]], r"states\[3\] is rank 0's, and so is one before it"),
        (states_of(step=6), "step of rank 2's state is not that of rank 0's"),
        (states_of(scale=2.0), "scale of rank 2's state"),
        (states_of(settings=["threshold=Fixed(value=1.0)"]), "settings of rank 2's state"),
        ([*states_of()[:2], saved_by(2, 4, 0, rotation=8)], "ranks 3 are missing"),
        ([*states_of(), saved_by(3, 4, 0, rotation=8)], "world_size of rank 3's state"),
        (other_weights(), "weights of rank 2's state"),
        (other_bases(), "parameter 1.weight: rotation of rank 1's state"),
        (other_parameters(), "weights of rank 1's state"),
        (no_residual(), "parameter 2.weight: residual must be a dense"),
        ([*states_of()[:2], states_of()[2] | {"step": 9}], r"states\[2\] \(rank 2\): .*damaged"),
        ([*states_of()[:2], states_of()[2] | {"rank": 9}], r"states\[2\] \(rank 9\): .*rank must"),
        ([*states_of()[:2], None], r"states\[2\] \(rank 'unknown'\): expected a gradsieve state"),
    ],
)
def test_what_is_not_all_of_one_run_is_refused(states, words):
    with pytest.raises(ValueError, match=words):
        gs.reshard(states, 2)


@pytest.mark.parametrize("world_size", [0, -1, True, 2.0, "2", None])
def test_the_number_of_ranks_is_a_whole_one(world_size):
    with pytest.raises(ValueError, match="world_size must be a whole number from 1"):
        gs.reshard(states_of(), world_size)
