"""Parameters that travel whole: nothing of them is lost, and many of them cost no more than few."""

import logging

import torch
import torch.distributed as dist
from models import Crossed, Ledger, batch, build, same_on_all_ranks, smaller_pieces, train
from ranks import run_ranks
from torch import nn

import gradsieve as gs
from gradsieve.parameters.small import choose_min_numel
from gradsieve.runtime import notices


class Steady(nn.Module):
    """Gradients that bfloat16 cannot hold, the same in every step."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.zeros(7))
        self.two = nn.Parameter(torch.zeros(5, 3))
        self.unused = nn.Parameter(torch.zeros(4))

    def forward(self, factor):
        return factor * (self.one.sum() + 0.3 * self.two.sum()) + 0 * self.unused.sum()


STEPS = 60


def a_steady_gradient(exchange, **choice):
    smaller_pieces()
    model = build(Steady, **choice)
    state = gs.attach(model, threshold=gs.Sigma(1.0), exchange=exchange, node_size=2)
    total = {name: torch.zeros(p.shape) for name, p in model.module.named_parameters()}
    for _ in range(STEPS):
        model.zero_grad()
        model(1.003 + dist.get_rank()).backward()
        for name, p in model.module.named_parameters():
            total[name] += p.grad
    mean = STEPS * (1.003 + (dist.get_world_size() - 1) / 2)
    for name, factor in (("one", 1.0), ("two", 0.3)):
        # All but what is rounded off once, which is a third of a gradient at most, or of a sum of
        # them where the ranks of a node share the rounding.
        error = (total[name] - factor * mean).abs().max() / (factor * mean)
        assert error < 0.5 / STEPS, (exchange, name, error)
    assert not total["unused"].any()
    assert any(kept.any() for kept in state.residuals.values())
    # A dense step sends what is left.
    state.exchange = "dense"
    model.zero_grad()
    model(1.003 + dist.get_rank()).backward()
    assert not any(kept.any() for kept in state.residuals.values())
    error = (total["one"] + model.module.one.grad - (STEPS + 1) / STEPS * mean).abs().max()
    assert error < 1e-5 * mean


def steady_gradients():
    for exchange in ("gather", "two-shot", "hierarchical"):
        a_steady_gradient(exchange)
    a_steady_gradient("gather", find_unused_parameters=True)


def test_nothing_of_a_steady_gradient_is_lost():
    run_ranks(4, steady_gradients)


class Sometimes(nn.Module):
    """One of two small parameters is used, by all ranks or by some."""

    def __init__(self):
        super().__init__()
        self.even, self.odd = nn.Linear(20, 3), nn.Linear(20, 3)

    def forward(self, x, step):
        return (self.odd if step % 2 else self.even)(x)


def unused_in_turns():
    for exchange in ("gather", "two-shot", "hierarchical"):
        model = build(Sometimes, find_unused_parameters=True)
        settings = {"threshold": gs.Sigma(1.0), "exchange": exchange, "node_size": 2}
        ledger = Ledger(model, min_numel=1000, **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(step))
            # In the last steps the ranks use different ones.
            ledger.step(optimizer, inputs, step + (dist.get_rank() if step > 3 else 0))
        assert same_on_all_ranks(model)


def test_what_no_rank_used_keeps_what_was_rounded_off():
    run_ranks(2, unused_in_turns)


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.numbers = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(2000)])

    def forward(self, x):
        return (torch.cat(list(self.numbers)) * x).sum()


class Adapters(nn.Module):
    """LoRA: matrices that are frozen, beside small ones that are trained."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(300, 300)
        self.base.requires_grad_(False)
        self.down = nn.Linear(300, 4, bias=False)
        self.up = nn.Linear(4, 300, bias=False)
        self.norm = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.base(x) + self.up(self.down(x)) * self.norm[0]


def small_models():
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    notices.logger.addHandler(handler)
    model = build(Many, bucket_cap_mb=25)
    state = gs.attach(model, threshold=gs.Sigma(1.0))
    for step in range(3):
        model(torch.full((2000,), 1.0 + step)).backward()
    assert state.last.bits_per_parameter < 1.05 * 16
    (text,) = seen
    assert "2000 of 2000 parameters, 100% of all elements" in text
    assert "numbers.0, numbers.1, numbers.2, ..." in text
    assert "nothing is pruned" in text

    seen.clear()
    model = build(Adapters, bucket_cap_mb=25)
    state = gs.attach(model, threshold=gs.Density(0.05))
    for step in range(3):
        inputs = torch.randn(16, 300, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
    assert sorted(state.last.thresholds) == ["down.weight", "up.weight"]
    assert state.last.density < 0.1
    assert not seen

    model = build(Adapters)
    gs.attach(model, threshold=gs.Density(0.05), min_numel=5000)
    assert "3 of 3 parameters" in seen[0]
    assert "min_numel=5000" in seen[0]


def test_models_of_small_parameters():
    run_ranks(2, small_models)


def test_which_parameters_are_small_follows_from_the_model():
    assert choose_min_numel([100_000, 2000, 10]) == 2048
    assert choose_min_numel([20_000, 2000, 10]) == 1024
    assert choose_min_numel([1200] * 10) == 1024
    assert choose_min_numel([600] * 10) == 512
    assert choose_min_numel([1] * 10) == 256
    assert choose_min_numel([]) == 2048


def kept_when_buckets_change():
    """DDP puts its buckets together anew after the first step."""
    for exchange in ("gather", "two-shot"):
        ledger = Ledger(build(Crossed), threshold=gs.Sigma(1.0), exchange=exchange, min_numel=1300)
        optimizer = torch.optim.SGD(ledger.model.parameters(), lr=0.1)
        buckets = []
        for step in range(3):
            ledger.step(optimizer, batch(step))
            buckets.append(list(ledger.buckets))
        assert buckets[0] != buckets[1]
        train(ledger.model, 2)
        assert same_on_all_ranks(ledger.model)


def test_what_is_rounded_off_follows_its_parameter_into_another_bucket():
    run_ranks(3, kept_when_buckets_change)
