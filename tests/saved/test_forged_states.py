"""A state that makes no sense, was damaged or is another's is refused, and changes nothing."""

import contextlib
import copy
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kept import SETTINGS, bound, file_of, kept_state, loaded, net
from torch import nn

import gradsieve as gs
from gradsieve.saved.seal import checksum_of, sealed

MAY_BE_NONE = {"mean_square", "threshold", "moments", "owned", "dealt"}
MAY_BE_INFINITE = {"threshold"}
MAY_BE_NEGATIVE = {"sum"}


def leaves(value, path=()):
    """The ways to all that a saved state holds, itself left out."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from leaves(item, (*path, place))


def changed(value, path, new):
    """A copy in which one thing is another."""
    if not path:
        return new
    first, *rest = path
    if isinstance(value, dict):
        return {key: changed(v, rest, new) if key == first else v for key, v in value.items()}
    items = [changed(v, rest, new) if n == first else v for n, v in enumerate(value)]
    return type(value)(items)


def value_at(value, path):
    for key in path:
        value = value[key]
    return value


def field_of(path):
    return next(key for key in reversed(path) if isinstance(key, str))


def bad_numbers(path, value):
    field = field_of(path)
    yield from (True, "1", 1 + 2j, torch.ones(()), [value], float("nan"), 2**70, b"1")
    if field not in MAY_BE_INFINITE:
        yield float("inf")
    if field not in MAY_BE_NEGATIVE:
        yield -1
    if isinstance(value, int):
        yield float(value)
    if field not in MAY_BE_NONE:
        yield None
    if field == "scale":
        yield from (0.0, 1e9, 2.0)
    if field == "mean_square":
        yield from (0.0, 1e308)
    if field == "numel":
        yield from (0, 10**15)
    if field == "dealt" and path[-1] == 2:
        yield 10**6


def bad_tensors(value):
    one = value.clone()
    for wrong in (float("nan"), float("inf"), -float("inf")):
        one = value.clone()
        one.view(-1)[3] = wrong
        yield one
    yield from (value.double(), value.half(), value.int(), value.to(torch.complex64))
    yield from (value.to_sparse(), value.to("meta"), value[None], value.tolist(), None, 0.0)


def bad_values():
    saved = kept_state().state_dict()
    for path, value in leaves(saved):
        field = field_of(path)
        if field == "checksum":
            continue
        if isinstance(value, torch.Tensor):
            bad = list(bad_tensors(value))
            if field == "owned":
                bad.append(torch.zeros(2000))
            if field in ("residual", "vectors"):
                huge = value.clone()
                huge.view(-1)[0] = 1e38
                bad.append(huge)
            if field == "vectors":
                bad += [2 * value, torch.zeros_like(value), value[:5]]
            if field == "residual":
                bad.append(value[:-1])
        elif isinstance(value, bool) or value is None or isinstance(value, str):
            bad = [b"", ["x"]]
        elif isinstance(value, int | float):
            bad = list(bad_numbers(path, value))
        elif isinstance(value, dict):
            bad = [{**value, "forged": 1}, list(value.items()), 1, value | {5: 5}]
            bad += [{k: v for k, v in value.items() if k != lost} for lost in value]
            bad += [None] if field not in MAY_BE_NONE else []
        else:
            bad = [[*value, 1], 1, "ab"] + ([value[:-1]] if value else [])
        for one in bad:
            yield path, one


CASES = list(bad_values())


def everything(state):
    return state.state_dict()["checksum"], state.step, state.engine.loaded_place


def require_refused(forged, words):
    """By a state that knows its model and by one that does not yet; neither is changed."""
    for state in (kept_state(seed=1), gs.SieveState(**SETTINGS)):
        before = everything(state)
        with pytest.raises(ValueError, match=words):
            state.load_state_dict(forged)
        assert everything(state) == before


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


def test_any_other_value_is_refused_by_the_checksum():
    saved = kept_state().state_dict()
    state = kept_state()
    for path, value in leaves(saved):
        if isinstance(value, torch.Tensor):
            # The last place of one element.
            other = value.clone()
            other.view(-1).view(torch.int32)[-1] ^= 1
        elif isinstance(value, float):
            other = value * (1 + 2**-52)
        elif isinstance(value, str) and path[0] == "settings":
            other = value + " "
        else:
            continue
        if isinstance(other, torch.Tensor) or other != value:
            with pytest.raises(ValueError, match=r"damaged: its checksum|scale|dealt"):
                state.load_state_dict(changed(saved, path, other))
    with pytest.raises(ValueError, match="damaged: its checksum"):
        state.load_state_dict(saved | {"checksum": "0" * 32})
    with pytest.raises(ValueError, match="damaged"):
        state.load_state_dict(saved | {"step": 8})


@pytest.mark.parametrize("junk", [None, 5, [], "state", {}, {1: 2}, {"version": True}])
def test_what_is_no_state_is_refused(junk):
    require_refused(junk, "version")
    require_refused({"version": 1, "step": 0, "parameters": {}}, "version 1 .an older gradsieve")


def test_the_order_of_keys_the_device_and_the_file_do_not_count():
    saved = kept_state().state_dict()
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(saved.items())
    }
    state = bound()
    for same in (turned, loaded(file_of(saved)), copy.deepcopy(saved)):
        assert checksum_of(same) == saved["checksum"]
        state.load_state_dict(same)
        assert state.state_dict()["checksum"] == saved["checksum"]


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


def test_values_that_look_alike_have_other_checksums():
    alike = [1, 1.0, True, "1", [1], {"1": 1}, {1: 1}, None, torch.ones(1), torch.ones(()), 0.0]
    alike += [-0.0, 0, False, [], {}, [[]], [1, [2]], [[1], 2], [1, 2], torch.ones(1).int()]
    sums = [checksum_of({"x": value}) for value in alike]
    assert len({*sums}) == len(sums)
    assert checksum_of({"x": (1, 2)}) == checksum_of({"x": [1, 2]})


def test_a_damaged_file_is_refused_or_is_none():
    """A flipped bit or a byte set to zero, anywhere in the file."""
    content = file_of(kept_state().state_dict())
    expected = everything(kept_state())
    random.seed(0)
    refused = 0
    state = kept_state()
    for case in range(300):
        damaged = bytearray(content)
        place = random.randrange(len(content))
        damaged[place] = 0 if case % 4 == 0 else damaged[place] ^ (1 << random.randrange(8))
        try:
            saved = loaded(bytes(damaged))
        except Exception:
            # torch has noticed.
            continue
        try:
            state.load_state_dict(saved)
        except ValueError:
            refused += 1
        assert everything(state)[0] == expected[0]
    assert refused > 100


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
