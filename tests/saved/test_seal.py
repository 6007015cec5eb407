"""A state that was damaged is refused by its checksum."""

import copy
import random

import pytest
import torch
from forged import changed, everything, leaves
from kept import bound, file_of, kept_state, loaded

from gradsieve.saved.seal import checksum_of, sealed


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


def test_a_mixture_of_two_ranks_is_called_so_whatever_is_found_first():
    saved = sealed(kept_state().state_dict() | {"world_size": 2})
    words = r"damaged: .*it is a mixture of their states: save gs.checkpoint.PerRank\(state\)"
    with pytest.raises(ValueError, match=words):
        bound().load_state_dict(saved | {"step": 8})
    # One rank's residual with another's piece.
    path = ("parameters", "vectors", "residual")
    mixed = changed(saved, path, torch.ones(300))
    words = r"dealt must be all that the rank keeps, .*mixture of their states: save gs.checkpoint"
    with pytest.raises(ValueError, match=words):
        bound().load_state_dict(mixed)
    # One that was saved so is no mixture.
    with pytest.raises(ValueError, match="dealt must be all") as raised:
        bound().load_state_dict(sealed(mixed))
    assert "mixture" not in str(raised.value)


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
