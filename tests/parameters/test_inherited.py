"""The part of a residual that is not the rank's own."""

import pytest
import torch

from gradsieve.parameters.inherited import Inherited
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.pieces import Dealt, nothing_to_add
from gradsieve.parameters.saving import load_inherited, save_inherited

CPU = torch.device("cpu")


def inherited_of(values):
    inherited = Inherited(len(values), CPU, is_kept=True)
    inherited.add(0, torch.tensor(values))
    inherited.commit()
    return inherited


def state_of(*, tells_own=True, rotation=0, shape=(6, 4)):
    return ParameterState(
        "w",
        torch.zeros(shape),
        whole=False,
        rotation=rotation,
        can_undo=False,
        tells_own=tells_own,
    )


def learned(state, seed=0):
    """As if the state had kept these gradients of its own."""
    own = torch.randn(state.shape, generator=torch.Generator().manual_seed(seed))
    state.residual += own
    state.is_empty = False
    return own


def test_what_is_added_lies_at_its_place():
    inherited = Inherited(5, CPU, is_kept=True)
    assert inherited.flat is None
    inherited.add(3, torch.ones(2))
    inherited.add(2, torch.ones(2))
    assert inherited.flat.tolist() == [0, 0, 1, 2, 1]


def test_what_is_sent_is_no_longer_there_until_the_step_is_undone():
    inherited = inherited_of([1.0, 2.0, 3.0, 4.0])
    inherited.send(1, torch.tensor([0, 2], dtype=torch.int32), torch.ones(2))
    assert inherited.flat.tolist() == [1, 0, 3, 0]
    inherited.send(0, torch.tensor([0], dtype=torch.int32), torch.ones(1))
    assert inherited.flat.tolist() == [0, 0, 3, 0]
    inherited.undo()
    assert inherited.flat.tolist() == [1, 2, 3, 4]
    inherited.send_all()
    assert inherited.flat is None
    inherited.undo()
    assert inherited.flat.tolist() == [1, 2, 3, 4]


def test_a_step_that_has_ended_is_not_undone():
    inherited = inherited_of([1.0, 2.0])
    inherited.send(0, torch.tensor([1], dtype=torch.int32), torch.ones(1))
    inherited.commit()
    inherited.undo()
    assert inherited.flat.tolist() == [1, 0]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_has_not_left(value):
    inherited = inherited_of([1.0, 2.0])
    inherited.send(0, torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1.0, value]))
    assert inherited.flat.tolist() == [0, 2]


def test_where_nobody_asks_nothing_takes_memory():
    inherited = Inherited(2, CPU, is_kept=False)
    inherited.add(0, torch.ones(2))
    assert inherited.flat is None
    inherited.become(torch.ones(2))
    assert inherited.flat is None


def test_pruned_sums_are_taken_over_and_are_not_the_rank_s_own():
    state = state_of()
    own = learned(state)
    state.owned_residual(8, 16).fill_(0.25)
    assert torch.equal(state.unsent(), own)
    state.take_over(4)
    torch.testing.assert_close(state.unsent(), own)
    expected = own.clone()
    expected[2:4] += 1.0
    torch.testing.assert_close(state.unrotated_residual(), expected)


@pytest.mark.parametrize("tells_own", [True, False])
def test_every_rank_owns_some_elements_of_sums_if_only_none(tells_own):
    state = state_of(tells_own=tells_own)
    learned(state)
    state.own((0, 0), 4)
    assert (state.owned is not None) == tells_own
    state.own((0, 0), 4)
    assert state.inherited.flat is None
    state.own(None, 4)
    assert state.owned is None
    assert (state.inherited.flat is not None) == tells_own


def test_another_piece_of_sums_is_taken_over():
    state = state_of()
    own = learned(state)
    state.own((0, 8), 4)
    state.owned_residual(0, 8).fill_(1.0)
    state.own((0, 8), 4)
    assert state.inherited.flat is None
    state.own((8, 16), 4)
    assert state.inherited.flat[:8].tolist() == [4.0] * 8
    assert (state.owned.start, state.owned.stop) == (8, 16)
    torch.testing.assert_close(state.unsent(), own)


def test_bases_turn_under_both_parts():
    state = state_of(rotation=8)
    own = learned(state)
    state.owned_residual(0, 24).copy_(torch.linspace(-1, 1, 24))
    for seed in range(3):
        state.rotation.learn(torch.randn(24, generator=torch.Generator().manual_seed(seed)))
        state.rotation.is_due = True
        state.turn(4, nothing_to_add)
    assert state.rotation.fingerprint
    assert state.inherited.flat.any()
    torch.testing.assert_close(state.unsent(), own)


def test_both_parts_can_be_brought_to_bases_that_others_have_turned():
    state = state_of(rotation=8)
    own = learned(state)
    state.owned_residual(0, 12).fill_(0.5)
    state.take_over(2)
    residual, inherited = state.unrotated()
    state.rotation.learn(torch.randn(24, generator=torch.Generator().manual_seed(1)))
    state.rotation.turn([])
    state.rotate_anew(residual, inherited)
    torch.testing.assert_close(state.unrotated_residual(), residual)
    torch.testing.assert_close(state.unsent(), own)


@pytest.mark.parametrize("rotation", [0, 8])
def test_another_layout_keeps_both_parts(rotation):
    state = state_of(rotation=rotation)
    own = learned(state)
    state.owned_residual(0, 12).fill_(0.5)
    state.take_over(2)
    whole = state.unrotated_residual()
    state.lay_out((1, 6), 2)
    assert state.residual.stride() == (1, 6)
    torch.testing.assert_close(state.unrotated_residual(), whole)
    torch.testing.assert_close(state.unsent(), own)


def test_of_what_a_node_has_kept_together_nothing_is_a_rank_s_own():
    state = state_of()
    learned(state)
    state.deal(Dealt(0, 12, 2), nothing_to_add)
    assert state.unsent() is None
    state.deal(None, nothing_to_add)
    assert state.residual.any()
    assert not state.unsent().any()
    own = learned(state, seed=1)
    torch.testing.assert_close(state.unsent(), own)


def test_a_node_that_has_sent_everything_leaves_nothing_behind():
    state = state_of()
    learned(state)
    state.deal(Dealt(0, 12, 2), nothing_to_add)
    state.give_residuals(torch.zeros(24), 4)
    state.commit()
    state.deal(None, nothing_to_add)
    assert state.inherited.flat is None


def test_a_dense_exchange_sends_both_parts():
    state = state_of()
    learned(state)
    state.owned_residual(0, 12).fill_(0.5)
    state.take_over(2)
    whole = state.unrotated_residual().flatten()
    flat = torch.zeros(24)
    state.give_residuals(flat, 2)
    torch.testing.assert_close(flat, whole)
    assert state.inherited.flat is None
    assert state.unsent() is None


@pytest.mark.parametrize("stride", [(4, 1), (1, 6)])
def test_what_is_saved_can_be_loaded_in_another_layout(stride):
    state = state_of()
    own = learned(state)
    state.owned_residual(0, 12).copy_(torch.linspace(1, 2, 12))
    state.take_over(2)
    other = ParameterState(
        "w", torch.empty_strided((6, 4), stride), whole=False, can_undo=False, tells_own=True
    )
    other.restore(state.residual, None, None)
    load_inherited(other, save_inherited(state))
    torch.testing.assert_close(other.unsent(), own)
    load_inherited(other, None)
    assert torch.equal(other.unsent(), state.residual)
