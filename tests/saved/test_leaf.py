"""A fresh state has the form of one that has trained, as a tool sees it that walks through it."""

import torch
from kept import bound, kept_state
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from gradsieve.saved.leaf import on_host
from gradsieve.saved.seal import checksum_of


def form(state):
    flat, _ = flatten_state_dict({"sieve": state.state_dict()})
    return {
        key: (value.shape, value.dtype) if isinstance(value, torch.Tensor) else None
        for key, value in flat.items()
    }


def test_a_fresh_state_has_the_form_of_one_that_has_trained():
    fresh, trained = form(bound()), form(kept_state())
    assert fresh == trained
    assert "sieve.parameters.one.weight.rotation.vectors.0" in fresh
    assert fresh["sieve.parameters.two.bias.residual"] == (torch.Size([30]), torch.float32)


def test_plain_data_on_the_host_is_as_it_was():
    saved = kept_state().state_dict()
    assert checksum_of(on_host(saved)) == saved["checksum"]
