"""What DDP lets its users choose: buckets, unused branches, accumulation, dtypes, formats."""

import pytest
import torch
import torch.distributed as dist
from models import (
    Crossed,
    Ledger,
    Net,
    batch,
    build,
    same_on_all_ranks,
    smaller_pieces,
    train,
    weights,
)
from ranks import run_ranks
from torch import nn

import gradsieve as gs

POLICY = {"threshold": gs.Density(0.05), "min_numel": 100}


def bucket_choices():
    expected = None
    choices = [
        {"bucket_cap_mb": 25},
        {},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"static_graph": True, "gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    ]
    for choice in choices:
        model = build(Crossed, **choice)
        ledger = Ledger(model, **POLICY)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = set()
        for step in range(6):
            ledger.step(optimizer, batch(step))
            seen.add(str(ledger.buckets))
        rebuilt = not choice.get("find_unused_parameters")
        assert len(seen) == 1 + rebuilt, (choice, seen)
        if choice.get("bucket_cap_mb") != 25:
            assert len(ledger.buckets) > 1
        expected = weights(model) if expected is None else expected
        assert torch.equal(weights(model), expected), choice


def test_the_buckets_make_no_difference():
    run_ranks(2, bucket_choices)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(20, 40)
        self.left = nn.Linear(40, 10)
        self.right = nn.Linear(40, 10)

    def forward(self, x, use_right):
        x = self.trunk(x).relu()
        return self.left(x) + (self.right(x) if use_right else 0)


CHANGING = ["gather", "two-shot", "two-shot", "gather", "dense", "dense", "dense", "gather"]


def unused_branch(exchanges):
    smaller_pieces()
    rank = dist.get_rank()
    used = [{0, 1, 2}, {0, 1, 2}, {0}, {1, 2}, set(), set(), {2}, {0, 1, 2}]
    for view in (False, True):
        model = build(Branches, find_unused_parameters=True, gradient_as_bucket_view=view)
        ledger = Ledger(model, **POLICY)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step, ranks in enumerate(used):
            ledger.state.exchange = exchanges[step]
            before = ledger.state.residuals["right.weight"]
            ledger.step(optimizer, batch(step), rank in ranks)
            if not ranks:
                assert model.module.right.weight.grad is None
                assert before.any()
            # What it owned of sums may come back to a rank where the exchange changes.
            if rank not in ranks and exchanges != CHANGING:
                assert torch.equal(ledger.state.residuals["right.weight"], before)
        assert same_on_all_ranks(model)


def never_used_in_a_static_graph():
    model = build(Branches, static_graph=True)
    ledger = Ledger(model, **POLICY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        ledger.step(optimizer, batch(step), False)
    assert same_on_all_ranks(model)


@pytest.mark.parametrize("exchanges", [["gather"] * 8, ["two-shot"] * 8, CHANGING])
def test_nothing_is_lost_of_a_branch_that_is_not_always_used(exchanges):
    run_ranks(3, unused_branch, exchanges)


def test_a_branch_that_is_never_used_does_no_harm():
    run_ranks(2, never_used_in_a_static_graph)


def accumulated():
    results = []
    for sieved in (False, True):
        model = build()
        if sieved:
            state = gs.attach(model, threshold=gs.Fixed(0.0), values="float32", min_numel=100)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            with model.no_sync():
                model(batch(10 + step)).square().mean().backward()
            model(batch(step)).square().mean().backward()
            optimizer.step()
        results.append(weights(model))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert state.step == 3


def test_gradients_accumulated_without_sync_count_as_one_step():
    run_ranks(2, accumulated)


class TwoTypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 40)
        self.middle = nn.Linear(40, 40, dtype=torch.bfloat16)
        self.two = nn.Linear(40, 5)

    def forward(self, x):
        x = self.middle(self.one(x).bfloat16().relu())
        return self.two(x.float())


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.deep = nn.Conv2d(8, 16, 3)

    def forward(self, x):
        return self.deep(self.conv(x).relu())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(20, 20)
        self.frozen = nn.Linear(20, 20)
        self.out = nn.Linear(20, 20)
        self.out.weight = self.embed.weight
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.out(self.frozen(self.embed(x)))


def last_channels():
    return Images().to(memory_format=torch.channels_last)


def unusual_models():
    rank = dist.get_rank()
    model = build(TwoTypes)
    ledger = Ledger(model, **POLICY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        # The average is rounded to bfloat16 where the parameter is.
        ledger.step(optimizer, batch(step), rtol=1e-2)
    assert same_on_all_ranks(model)

    outcomes = []
    for make in (Images, last_channels):
        for view in (False, True):
            model = build(make, gradient_as_bucket_view=view)
            ledger = Ledger(model, **POLICY)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(4):
                generator = torch.Generator().manual_seed(100 * step + rank)
                images = torch.randn(2, 3, 8, 8, generator=generator)
                ledger.step(optimizer, images)
            residual = ledger.state.residuals["deep.weight"]
            outcomes.append((weights(model), residual))
    for result, residual in outcomes[1:]:
        torch.testing.assert_close(result, outcomes[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(residual, outcomes[0][1], rtol=1e-3, atol=1e-4)

    model = build(Tied)
    ledger = Ledger(model, **POLICY)
    assert list(ledger.state.residuals) == ["embed.weight", "embed.bias", "out.bias"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frozen = model.module.frozen.weight.clone()
    for step in range(4):
        ledger.step(optimizer, batch(step))
    assert torch.equal(model.module.frozen.weight, frozen)
    assert same_on_all_ranks(model)


def test_dtypes_memory_formats_frozen_and_tied_parameters():
    run_ranks(2, unusual_models)


def uneven_inputs():
    rank = dist.get_rank()
    for choice in ({}, {"find_unused_parameters": True}):
        for bound in (True, False):
            model = build(Net, **choice)
            state = gs.SieveState(**POLICY)
            if bound:
                state.bind(model)
            model.register_comm_hook(state, gs.sieve_hook)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with model.join():
                train(model, 2 + 3 * rank, optimizer=optimizer)
            assert same_on_all_ranks(model)
            # The ranks that have joined answer with what is left in their residuals.
            assert state.step == 2 + 3 * (dist.get_world_size() - 1)


def joined_like_plain_ddp():
    """A rank that has joined answers with zeros, also where its gradients are views of buckets."""
    rank = dist.get_rank()
    for views in (False, True):
        results = []
        for sieved in (False, True):
            model = build(Net, gradient_as_bucket_view=views)
            if sieved:
                settings = {"values": "float32", "exchange": "gather", "min_numel": 100}
                gs.attach(model, threshold=gs.Fixed(0.0), **settings)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with model.join():
                for step in range(2 + 3 * rank):
                    optimizer.zero_grad(set_to_none=False)
                    model(batch(step)).square().mean().backward()
                    optimizer.step()
            assert same_on_all_ranks(model)
            results.append(weights(model))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def joined():
    uneven_inputs()
    joined_like_plain_ddp()


def test_join_with_uneven_inputs():
    run_ranks(3, joined)
