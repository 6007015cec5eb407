"""A rank keeps in its weights what it has not sent."""

import pytest
import torch
from torch import nn

from gradsieve.outer.weights import OuterWeights


def plain_average(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def begun(dtype=torch.float32, size=6):
    inner = nn.Parameter(torch.linspace(-1, 1, size).to(dtype))
    return inner, OuterWeights([("w", inner)], plain_average)


def move(parameter, by):
    with torch.no_grad():
        parameter.sub_(torch.as_tensor(by, dtype=parameter.dtype))


def exchange(weights, average, unsent):
    """Let the others answer with an average, and keep the rest."""
    flight = weights.begin(0, goes_on=False)
    moved = flight.buckets[0].flat.clone()
    flight.buckets[0].flat.copy_(average)
    weights.end(flight, lambda name: unsent)
    return moved


def test_what_is_not_sent_stays_in_the_weights_and_is_no_new_progress():
    inner, weights = begun()
    start = inner.detach().clone()
    move(inner, 0.5)
    unsent = torch.tensor([0.5, 0, 0.5, 0, 0, 0.5])
    assert torch.equal(exchange(weights, 0.5 - unsent, unsent), torch.full((6,), 0.5))
    torch.testing.assert_close(inner.detach(), start - 0.5)
    torch.testing.assert_close(weights.outer[0].detach(), start - 0.5 + unsent)
    # Nothing was learned since, so nothing is sent again: the residual has it.
    assert not exchange(weights, torch.zeros(6), unsent).any()


def test_new_progress_is_counted_once_beside_what_is_held():
    inner, weights = begun()
    move(inner, 1.0)
    exchange(weights, torch.zeros(6), torch.ones(6))
    move(inner, 0.25)
    torch.testing.assert_close(exchange(weights, 0.0, None), torch.full((6,), 0.25))
    assert weights.holding == []


def test_settling_leaves_the_outer_weights_and_what_was_learned_since():
    inner, weights = begun()
    move(inner, 1.0)
    exchange(weights, torch.zeros(6), torch.ones(6))
    assert weights.holding == ["w"]
    weights.settle()
    assert torch.equal(inner, weights.outer[0])
    assert weights.holding == []
    exchange(weights, torch.zeros(6), torch.ones(6))
    move(inner, 0.25)
    expected = weights.outer[0].detach() - 0.25
    torch.testing.assert_close(weights.settled(0), expected)
    weights.settle()
    torch.testing.assert_close(inner.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_what_is_held_is_no_progress(dtype):
    inner, weights = begun(dtype, size=1000)
    move(inner, 0.01)
    exchange(weights, torch.zeros(1000), torch.linspace(0, 0.01, 1000))
    assert not exchange(weights, torch.zeros(1000), None).any()
    assert torch.equal(inner.detach(), weights.outer[0].detach().to(dtype))


def test_what_is_learned_while_an_exchange_is_under_way_stays_beside_it():
    inner, weights = begun()
    start = inner.detach().clone()
    move(inner, 1.0)
    flight = weights.begin(0, goes_on=True)
    move(inner, 0.5)
    flight.buckets[0].flat.zero_()
    weights.end(flight, lambda name: torch.ones(6))
    torch.testing.assert_close(inner.detach(), start - 1.5)
    torch.testing.assert_close(exchange(weights, 0.0, None), torch.full((6,), 0.5))
