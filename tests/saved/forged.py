"""All that may be wrong in a saved state, and what must not change when it is refused."""

import pytest
import torch
from kept import SETTINGS, kept_state

import gradsieve as gs

MAY_BE_NONE = {"mean_square", "threshold", "moments", "owned", "dealt"}
MAY_BE_INFINITE = {"threshold"}
MAY_BE_NEGATIVE = {"sum"}


def leaves(value, path=()):
    """The paths to all that a saved state holds, itself left out."""
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


def everything(state):
    return state.state_dict()["checksum"], state.step, state.engine.loaded_place


def require_refused(forged, words):
    """By a state that knows its model and by one that does not yet; neither is changed."""
    for state in (kept_state(seed=1), gs.SieveState(**SETTINGS)):
        before = everything(state)
        with pytest.raises(ValueError, match=words):
            state.load_state_dict(forged)
        assert everything(state) == before
