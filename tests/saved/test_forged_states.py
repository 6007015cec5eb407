"""A state that makes no sense is refused by the name of its field, and changes nothing."""

import contextlib
import re

import pytest
import torch
from forged import bad_values, changed, everything, field_of, leaves, require_refused, value_at
from hypothesis import given, settings
from hypothesis import strategies as st
from kept import SETTINGS, kept_state, net

import gradsieve as gs
from gradsieve.saved.seal import checksum_of, sealed

CASES = list(bad_values())


def test_cases_are_many():
    assert len(CASES) > 900


@pytest.mark.parametrize("top", [*kept_state().state_dict()][:-1])
def test_a_forged_field_is_refused_by_name(top):
    """Also where the forger has made a new checksum."""
    saved = kept_state().state_dict()
    cases = [(path, bad) for path, bad in CASES if path[0] == top]
    assert cases
    mine = kept_state(seed=1)
    before = everything(mine)
    for path, bad in cases:
        forged = changed(saved, path, bad)
        with contextlib.suppress(ValueError):
            # Where no checksum can be made of it, the old one stays.
            forged = sealed(forged)
        # A key that is missing or unknown is named itself.
        keys = {*value_at(saved, path)} ^ {*bad} if isinstance(bad, dict) else set()
        names = "|".join(re.escape(str(name)) for name in {field_of(path), *keys})
        # Both have as many dimensions.
        names = f"{names}|stride|moments|dealt" if field_of(path) == "residual" else names
        with pytest.raises(ValueError, match=names):
            mine.load_state_dict(forged)
        other = gs.SieveState(**SETTINGS)
        with pytest.raises(ValueError, match=names):
            load_and_bind(other, forged)
        assert not other.sieve.parameters.states
    assert everything(mine) == before


def load_and_bind(state, forged):
    """What only the model can tell is refused when it is known."""
    try:
        state.load_state_dict(forged)
    except ValueError:
        assert state.state_dict()["parameters"] == {}
        raise
    state.bind(net())


@pytest.mark.parametrize("junk", [None, 5, [], "state", {}, {1: 2}, {"version": True}])
def test_what_is_no_state_is_refused(junk):
    require_refused(junk, "version")
    require_refused({"version": 2, "step": 0}, "version 2, which an older gradsieve saved: finish")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**65)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.sampled_from([torch.ones(3), torch.ones(2, 2), torch.ones(40), torch.zeros(()), object()]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_in_a_field_is_refused_or_loaded_as_it_is(data):
    saved = kept_state().state_dict()
    path, _ = data.draw(st.sampled_from(list(leaves(saved))))
    one = changed(saved, path, data.draw(ANYTHING))
    if data.draw(st.booleans()):
        with contextlib.suppress(ValueError):
            one = sealed(one)
    state = kept_state(seed=1)
    before = everything(state)
    try:
        state.load_state_dict(one)
    except ValueError:
        assert everything(state) == before
    else:
        assert state.state_dict()["checksum"] == checksum_of(one)
