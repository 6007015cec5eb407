"""Pseudo-gradients, and what the outer optimizer makes of their average."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradsieve.bucket import flat
from gradsieve.bucket.flat import buckets_of
from gradsieve.outer.fragments import split_alike
from gradsieve.outer.weights import OuterWeights


def plain_average(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def named(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        (f"p{n}", nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
        for n, shape in enumerate(shapes)
    ]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.data())
def test_fragments_hold_every_parameter_once_and_are_alike_in_size(numels, data):
    count = data.draw(st.integers(1, len(numels)))
    parts = split_alike(numels, count)
    assert sorted(place for part in parts for place in part) == list(range(len(numels)))
    assert all(parts)
    sizes = [sum(numels[place] for place in part) for part in parts]
    assert max(sizes) - min(sizes) <= max(numels) + len(numels)


def test_more_fragments_than_parameters_are_refused():
    with pytest.raises(ValueError, match="3 fragments of a model of 2 parameters"):
        split_alike([1, 2], 3)


def test_buckets_hold_so_much_and_no_more(monkeypatch):
    monkeypatch.setattr(flat, "BUCKET_BYTES", 40)
    buckets = buckets_of([p for _, p in named((4,), (6,), (1,), (30,), (2, 2))])
    assert [[p.numel() for p in bucket.parameters()] for bucket in buckets] == [
        [4, 6],
        [1],
        [30],
        [4],
    ]
    assert [bucket.index() for bucket in buckets] == [0, 1, 2, 3]
    assert [bucket.is_last() for bucket in buckets] == [False, False, False, True]


def test_a_lone_rank_with_plain_averaging_keeps_its_weights():
    inner = named((3, 4), (5,))
    weights = OuterWeights(inner, plain_average)
    moved = [p.detach().clone().add_(0.5) for _, p in inner]
    with torch.no_grad():
        for (_, p), value in zip(inner, moved, strict=True):
            p.copy_(value)
    flight = weights.begin(0, goes_on=False)
    assert all(torch.allclose(b.flat, torch.tensor(-0.5)) for b in flight.buckets)
    weights.end(flight)
    for (_, p), outer, value in zip(inner, weights.outer, moved, strict=True):
        torch.testing.assert_close(p.detach(), value)
        assert torch.equal(p, outer)


def test_a_momentum_that_grows_is_the_default():
    inner = named((6,))
    start = inner[0][1].detach().clone()
    weights = OuterWeights(inner)
    momentum = torch.zeros(6)
    expected = start.clone()
    for step in range(3):
        with torch.no_grad():
            inner[0][1].sub_(step + 1.0)
        pseudo_gradient = expected - inner[0][1].detach()
        grown = step / (step + 3)
        momentum = grown * momentum + pseudo_gradient
        expected = expected - 0.7 * (pseudo_gradient + grown * momentum)
        weights.end(weights.begin(0, goes_on=False))
        torch.testing.assert_close(inner[0][1].detach(), expected)


def test_what_was_learned_meanwhile_stays_and_is_exchanged_next():
    inner = named((8,))
    (_, parameter), start = inner[0], inner[0][1].detach().clone()
    weights = OuterWeights(inner, plain_average)
    with torch.no_grad():
        parameter.add_(1.0)
    flight = weights.begin(0, goes_on=True)
    with torch.no_grad():
        parameter.add_(10.0)
    # The other rank has not moved: on average it is half as far.
    flight.buckets[0].flat.mul_(0.5)
    weights.end(flight)
    torch.testing.assert_close(weights.outer[0].detach(), start + 0.5)
    torch.testing.assert_close(parameter.detach(), start + 10.5)
    following = weights.begin(0, goes_on=False)
    torch.testing.assert_close(following.buckets[0].flat, torch.full((8,), -10.0))


def test_a_fragment_leaves_the_others_alone():
    inner = named((4,), (4,), (4,))
    weights = OuterWeights(inner, fragments=3)
    with torch.no_grad():
        for _, p in inner:
            p.add_(1.0)
    before = [p.detach().clone() for _, p in inner]
    weights.end(weights.begin(1, goes_on=False))
    (mine,) = weights.parts[1]
    for place, (_, p) in enumerate(inner):
        assert torch.equal(p.detach(), before[place]) == (place != mine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outer_weights_of_half_precision_are_float32(dtype):
    inner = named((16,), dtype=dtype)
    weights = OuterWeights(inner, plain_average)
    assert weights.outer[0].dtype is torch.float32
    with torch.no_grad():
        inner[0][1].add_(1.0)
    value = inner[0][1].detach().clone()
    flight = weights.begin(0, goes_on=True)
    assert flight.buckets[0].flat.dtype is torch.float32
    weights.end(flight)
    assert torch.equal(inner[0][1].detach(), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_below_the_rounding_of_half_precision_adds_up(dtype):
    """One of four ranks moves by its smallest step, the others stand still."""
    inner = [("one", nn.Parameter(torch.full((4,), 1.5, dtype=dtype)))]
    (_, parameter), weights = inner[0], OuterWeights(inner, plain_average)
    step = torch.finfo(dtype).eps
    for _ in range(40):
        with torch.no_grad():
            parameter.sub_(step)
        flight = weights.begin(0, goes_on=False)
        flight.buckets[0].flat.mul_(0.25)
        weights.end(flight)
    expected = torch.full((4,), 1.5 - 10 * step)
    torch.testing.assert_close(weights.outer[0].detach(), expected, rtol=0, atol=step)
    torch.testing.assert_close(parameter.detach().float(), expected, rtol=0, atol=step)


def test_memory_formats_and_views_are_kept():
    image = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    column = nn.Parameter(torch.randn(6, 4)[:, 1])
    weights = OuterWeights([("image", image), ("column", column)], plain_average)
    with torch.no_grad():
        for p in (image, column):
            p.add_(torch.arange(p.numel()).view_as(p))
    expected = [image.detach().clone(), column.detach().clone()]
    flight = weights.begin(0, goes_on=False)
    gradients = [g for b in flight.buckets for g in b.shaped()]
    for gradient, p in zip(gradients, (image, column), strict=True):
        torch.testing.assert_close(gradient, -torch.arange(float(p.numel())).view_as(p))
    weights.end(flight)
    torch.testing.assert_close(image.detach(), expected[0])
    torch.testing.assert_close(column.detach(), expected[1])


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameters"):
        OuterWeights([])


def test_any_optimizer_of_torch_may_be_the_outer_one():
    inner = named((8,))
    weights = OuterWeights(inner, lambda parameters: torch.optim.AdamW(parameters, lr=0.1))
    before = inner[0][1].detach().clone()
    with torch.no_grad():
        inner[0][1].add_(3.0)
    weights.end(weights.begin(0, goes_on=False))
    # Adam's first step is as long as its learning rate.
    torch.testing.assert_close(
        (inner[0][1] - before).detach(), torch.full((8,), 0.1), atol=0.02, rtol=0
    )
