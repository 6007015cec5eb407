"""A sound state of another step, rank, model or other options is refused, and changes nothing."""

import pytest
import torch
from forged import require_refused
from kept import bound, kept_state, net
from torch import nn

import gradsieve as gs
from gradsieve.saved.seal import sealed


def test_another_step_s_weights_are_refused():
    saved = kept_state().state_dict()
    other = net()
    with torch.no_grad():
        other.two.bias[3] += 1e-6
    state = bound(other)
    words = r"two.bias\).*load the model's checkpoint of the same step first"
    with pytest.raises(ValueError, match=words):
        state.load_state_dict(saved)
    assert state.step == 0
    other.load_state_dict(net().state_dict())
    state.load_state_dict(saved)
    assert state.step == 7


OTHER_SETTINGS = [
    ({"threshold": gs.Sigma(2.5)}, r"threshold was Sigma\(k=2.0, .*\) and is Sigma\(k=2.5, "),
    ({"values": "float32"}, "values was levels and is float32 here"),
    ({"exchange": "two-shot"}, "exchange was gather and is two-shot here"),
    ({"rotation": 8}, "rotation was 16 and is 8 here"),
    ({"error_feedback": False}, "error_feedback was True and is False here"),
    ({"min_numel": 90, "start_step": 2}, "min_numel was 100 .*; start_step was 0 and is 2 here"),
    ({"ramp_steps": 3}, "ramp_steps was 0 and is 3 here"),
]


@pytest.mark.parametrize(("settings", "words"), OTHER_SETTINGS)
def test_other_settings_are_named_with_both_values(settings, words):
    saved = kept_state().state_dict()
    state = bound(**settings)
    with pytest.raises(ValueError, match=words):
        state.load_state_dict(saved)
    assert state.step == 0


class Nameless:
    """A policy without words of its own."""

    measured = "sent"

    def next(self, moments, threshold):
        return 0.5


def test_a_policy_without_words_loads_in_another_process():
    saved = kept_state(threshold=Nameless()).state_dict()
    bound(threshold=Nameless()).load_state_dict(saved)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            {"rank": 1, "world_size": 2},
            r"rank 1 of 2, loaded on rank 0 of 1: .*gs.reshard\(states, 1",
        ),
        ({"world_size": 4}, "rank 0 of 4, loaded on rank 0 of 1"),
        ({"rank": 1}, "rank must be a whole number between 0 and 0"),
    ],
)
def test_another_rank_s_state_is_refused(place, words):
    require_refused(sealed(kept_state().state_dict() | place), words)


def test_a_budget_s_scale_lies_within_its_bounds():
    for budget, scale in ((gs.Budget("auto"), 9.0), (gs.Budget(bytes_per_step=1e6), 2e4)):
        state = bound(threshold=budget)
        for number in (scale, 0.0, -1.0, 1e-5, float("inf"), float("nan")):
            forged = sealed(state.state_dict() | {"scale": number})
            with pytest.raises(ValueError, match="scale"):
                state.load_state_dict(forged)
        state.load_state_dict(sealed(state.state_dict() | {"scale": 8.0}))
        assert state.sieve.thresholds.scale == 8.0


def images(memory_format):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Conv2d(6, 8, 3))
    return model.to(memory_format=memory_format)


def test_pieces_in_another_order_in_memory_are_refused():
    """Without pieces the residual finds its places; reshard makes such a state."""
    first, last = torch.channels_last, torch.contiguous_format
    state = gs.SieveState(threshold=gs.Fixed(1.0), min_numel=1)
    state.bind(images(first))
    conv = state.sieve.parameters.states["0.weight"]
    conv.residual.copy_(torch.randn(6, 8, 3, 3))
    other = gs.SieveState(threshold=gs.Fixed(1.0), min_numel=1)
    other.bind(images(last))
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.residuals["0.weight"], state.residuals["0.weight"])
    conv.owned_residual(10, 200).copy_(torch.randn(190))
    with pytest.raises(ValueError, match=r"0.weight: its elements lie in another order.*reshard"):
        other.load_state_dict(state.state_dict())
    owed = state.residuals["0.weight"] + state.owned_residuals["0.weight"]
    other.load_state_dict(gs.reshard([state.state_dict()], 1)[0])
    torch.testing.assert_close(other.residuals["0.weight"], owed)
    turned = gs.SieveState(threshold=gs.Fixed(1.0), min_numel=1, rotation=8)
    turned.bind(images(first))
    again = gs.SieveState(threshold=gs.Fixed(1.0), min_numel=1, rotation=8)
    again.bind(images(last))
    with pytest.raises(ValueError, match=r"memory_format"):
        again.load_state_dict(turned.state_dict())
