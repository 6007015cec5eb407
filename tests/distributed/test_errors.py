"""What a user gets wrong is said in words, on every rank, and nothing hangs."""

import inspect
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch.distributed as dist
from models import Net, batch, build, on_every_rank, train
from ranks import run_ranks
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.bucket.requirements import require_torch
from gradsieve.saved.seal import sealed

POLICY = {"threshold": gs.Density(0.05), "min_numel": 100}


def raises_everywhere(kind, words, body):
    """The error comes on this rank, and on all others too."""
    found = None
    try:
        body()
    except Exception as error:
        found = error
    assert on_every_rank(isinstance(found, kind)), f"expected {kind.__name__}, got {found!r}"
    for word in words:
        assert word in str(found), f"{word!r} is not in: {found}"


class Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 40)
        self.too = nn.Linear(40, 30)
        self.three = nn.Linear(30, 5)

    def forward(self, x):
        return self.three(self.too(self.one(x).relu()).relu())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(200, 20, sparse=True)
        self.out = nn.Linear(20, 5)

    def forward(self, x):
        return self.out(self.table(x.abs().long()))


def different_ranks():
    rank = dist.get_rank()

    def settings():
        model = build()
        gs.attach(model, threshold=gs.Fixed(0.5 if rank == 2 else 0.25))
        train(model, 1)

    raises_everywhere(
        gs.SieveError, ["Fixed(value=0.25)", "Fixed(value=0.5)", "rank 2", "settings"], settings
    )

    def names():
        model = build(Renamed if rank == 1 else Net)
        gs.attach(model, **POLICY)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["two.weight", "too.weight", "rank 1", "models"], names)

    def steps():
        model = build()
        state = gs.attach(model, **POLICY)
        if rank == 0:
            state.load_state_dict(sealed(state.state_dict() | {"step": 7}))
        train(model, 1)

    raises_everywhere(gs.SieveError, ["step=7", "step=0"], steps)

    def bound_and_unbound():
        model = build()
        state = gs.SieveState(**POLICY)
        if rank == 0:
            state.bind(model)
        model.register_comm_hook(state, gs.sieve_hook)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["the ranks have different"], bound_and_unbound)


@dataclass(frozen=True)
class NoNumber:
    measured: ClassVar[gs.Measured] = "sent"

    def next(self, moments, threshold):
        return math.nan


def misuse():
    def attached_twice():
        model = build()
        gs.attach(model)
        gs.attach(model)

    raises_everywhere(gs.SieveError, ["sieve_hook", "once"], attached_twice)

    def beside_another_hook():
        model = build()
        model.register_comm_hook(None, fp16_compress_hook)
        gs.attach(model)

    raises_everywhere(gs.SieveError, ["fp16_compress_hook"], beside_another_hook)
    raises_everywhere(TypeError, ["DDP", "Net"], lambda: gs.attach(Net()))

    def bound_twice():
        state = gs.attach(build())
        state.bind(build())

    raises_everywhere(gs.SieveError, ["one SieveState a model"], bound_twice)

    def bound_late():
        model, state = build(), gs.SieveState(**POLICY)
        model.register_comm_hook(state, gs.sieve_hook)
        train(model, 1)
        state.bind(model)

    raises_everywhere(gs.SieveError, ["before the first"], bound_late)

    def two_models(*, bind):
        models, state = [build(), build()], gs.SieveState(**POLICY)
        if bind:
            state.bind(models[0])
        for model in models:
            model.register_comm_hook(state, gs.sieve_hook)
        train(models[0], 2)
        train(models[1], 1)

    for bind in (True, False):
        raises_everywhere(
            gs.SieveError, ["one SieveState a model"], lambda bind=bind: two_models(bind=bind)
        )

    def sparse():
        model = build(Words)
        model.register_comm_hook(gs.SieveState(**POLICY), gs.sieve_hook)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["sparse", "[200, 20]"], sparse)

    def double():
        model = build(lambda: Net().double())
        gs.attach(model, **POLICY)
        model(batch(0).double()).sum().backward()

    raises_everywhere(gs.SieveError, ["float64", "float32"], double)

    skipping = "skip_all_reduce_unused_params"
    if skipping in inspect.signature(DDP.__init__).parameters:
        option = {skipping: True, "find_unused_parameters": True}
        raises_everywhere(gs.SieveError, [skipping], lambda: gs.attach(build(**option)))

    def bad_policy():
        model = build()
        gs.attach(model, threshold=NoNumber(), min_numel=100)
        train(model, 1)

    raises_everywhere(gs.SieveError, ["NoNumber", "nan", "0 or more"], bad_policy)

    # The process group is as good as new for the next model.
    model = build()
    gs.attach(model, **POLICY)
    train(model, 3)


def test_ranks_that_differ_say_so_on_every_rank():
    run_ranks(3, different_ranks)


def test_misuse_says_what_to_do_on_every_rank():
    run_ranks(2, misuse)


@pytest.mark.parametrize("name", ["min_numel", "start_step", "ramp_steps"])
def test_a_negative_count_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
        gs.SieveState(**{name: -1})


def test_an_old_torch_is_refused():
    with pytest.raises(gs.SieveError, match=r"torch 2\.6 or later, found 2\.5\.1"):
        require_torch("2.5.1")
    require_torch("2.6.0")
    require_torch("2.13.0+cpu")
    require_torch("3.0.0a0+git123")
