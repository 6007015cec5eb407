"""A model wrapped otherwise loads the same state; another model does not."""

import pytest
import torch
from kept import SETTINGS, bound, file_of, kept_state, loaded, net
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import gradsieve as gs
from gradsieve.saved.parameter_names import counterparts, module_prefix, plain_names


class Holder(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.net = module


def partly_compiled(model):
    model.one, model.two = torch.compile(model.one), checkpoint_wrapper(model.two)
    return model


WRAPPED = {
    "plain": lambda model: model,
    "compiled": torch.compile,
    "partly": partly_compiled,
    "held": Holder,
    "held twice": lambda model: Holder(torch.compile(Holder(model))),
}


@pytest.mark.parametrize("before", WRAPPED)
@pytest.mark.parametrize("after", WRAPPED)
def test_a_model_wrapped_otherwise_loads_the_state(before, after):
    state = kept_state(WRAPPED[before](net()))
    assert not any("_orig_mod" in name for name in state.residuals)
    saved = loaded(file_of(state.state_dict()))
    for load_first in (False, True):
        fresh = gs.SieveState(**SETTINGS)
        if load_first:
            fresh.load_state_dict(saved)
        fresh.bind(WRAPPED[after](net()))
        if not load_first:
            fresh.load_state_dict(saved)
        expected = [*state.residuals.values()]
        assert all(map(torch.equal, fresh.residuals.values(), expected))
        assert fresh.sieve.parameters.weights() is not None
        # Pieces are dealt by the label, which is the same.
        labels = [parameter.label for parameter in state.sieve.parameters]
        assert [parameter.label for parameter in fresh.sieve.parameters] == labels


def test_a_module_of_another_name_is_another_model():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.other = net()

    saved = kept_state(Holder(net())).state_dict()
    with pytest.raises(ValueError, match=r"another model: it lacks \['other.one.bias'"):
        bound(Other()).load_state_dict(saved)


@pytest.mark.parametrize(
    ("saved", "mine", "expected"),
    [
        (["a.w", "b.w"], ["b.w", "a.w"], {"a.w": "a.w", "b.w": "b.w"}),
        (["m.a.w", "m.b"], ["a.w", "b"], {"a.w": "m.a.w", "b": "m.b"}),
        (["a.w", "b"], ["x.y.a.w", "x.y.b"], {"x.y.a.w": "a.w", "x.y.b": "b"}),
        (["w"], ["m.w"], {"m.w": "w"}),
        (["n.w"], ["m.n.w"], {"m.n.w": "n.w"}),
        (["n.w"], ["mn.w"], None),
        (["n.w"], ["m.w"], None),
        (["a.w", "b.w"], ["a.w", "c.w"], None),
        (["a.w", "b.w"], ["a.w"], None),
        (["a.w"], ["a.w", "b.w"], None),
        ([], ["a.w"], None),
    ],
)
def test_names_match_but_for_modules_around_all(saved, mine, expected):
    if expected is None:
        with pytest.raises(ValueError, match="another model"):
            counterparts(saved, mine)
    else:
        assert counterparts(saved, mine) == expected


def test_names_that_would_become_one_stay_as_they_are():
    names = ["a._orig_mod.w", "a.w"]
    assert plain_names(names) == names
    assert plain_names(["_orig_mod.a._fsdp_wrapped_module._orig_mod.w", "_orig_mod"]) == [
        "a.w",
        "_orig_mod",
    ]
    assert module_prefix(["m.a.b.w", "m.a.c", "m.a.b.x"]) == "m.a."
    assert module_prefix([]) == ""


def test_a_state_that_awaits_its_model_is_saved_as_it_was_loaded():
    saved = kept_state().state_dict()
    fresh = gs.SieveState(**SETTINGS)
    fresh.load_state_dict(saved)
    assert fresh.state_dict()["checksum"] == saved["checksum"]
    # Refused: it still awaits the right one.
    with pytest.raises(ValueError, match="another model"):
        fresh.bind(nn.Linear(20, 40))
    fresh.bind(net())
    assert fresh.state_dict()["checksum"] == saved["checksum"]


def test_a_state_that_has_not_begun_loads():
    saved = gs.SieveState(**SETTINGS).state_dict()
    assert saved["parameters"] == {}
    fresh = gs.SieveState(**SETTINGS)
    fresh.load_state_dict(saved)
    fresh.bind(net())
    assert fresh.step == 0
    with pytest.raises(ValueError, match="another model: it lacks"):
        bound().load_state_dict(saved)
