"""What an Averager refuses, what it tells of, and what it leaves behind."""

import copy
import gc
import logging
import os
import weakref

import pytest
import torch
import torch.distributed as dist
from averaging import PRUNED, fresh, train
from models import Net, batch, on_every_rank
from ranks import run_ranks

import gradsieve as gs


def refuses():
    model = fresh()
    for wrong in (model, model.one.weight, {"a": model.one.weight}, 3, [model], [("a", 1)]):
        with pytest.raises(TypeError, match=r"as model\.named_parameters\(\), got"):
            gs.Averager(wrong)
    for wrong, message in (
        ([], "no parameter is trained"),
        ([model.one.weight] * 2, "a parameter is given twice"),
        ([("a", model.one.weight), ("a", model.one.bias)], "several parameters have the name a"),
    ):
        with pytest.raises(ValueError, match=message):
            gs.Averager(wrong)
    with pytest.raises(TypeError, match="no option 'treshold'; did you mean threshold"):
        gs.Averager(model.parameters(), treshold=1)
    with pytest.raises(gs.SieveError, match=r"parameter 0 is torch\.float64"):
        gs.Averager([torch.ones(3, dtype=torch.float64)])
    with pytest.raises(ValueError, match="overlap=True needs parameters"):
        gs.Averager([torch.ones(3)], overlap=True)
    sieve = gs.Averager(model.parameters())
    with pytest.raises(gs.SieveError, match="bound to another model already"):
        sieve.bind(model)
    with pytest.raises(TypeError, match="an Averager cannot be copied"):
        copy.deepcopy(sieve)
    one = dist.new_group([0])
    if dist.get_rank() == 1:
        with pytest.raises(ValueError, match="no member"):
            gs.Averager(model.parameters(), process_group=one)
    torch.manual_seed(dist.get_rank())
    seeded = Net()
    mine = gs.Averager(seeded.named_parameters(), **PRUNED)
    with pytest.raises(gs.MismatchError, match=r"one\.weight .* with weights of checksum"):
        train(seeded, mine.average_, 1)
    mesh = dist.init_device_mesh("cpu", (2,))
    with pytest.raises(TypeError, match=r"give its group, as mesh\[\"replicate\"\]\.get_group"):
        gs.Averager(model.parameters(), process_group=mesh)
    # Ranks that do not average alike.
    mine = gs.Averager(model.named_parameters(), threshold=gs.Fixed(dist.get_rank()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(gs.MismatchError, match=r"threshold=Fixed\(value=0\)"):
        mine.average_()
    assert on_every_rank(all(bool((p.grad == 1).all()) for p in model.parameters()))


def is_missed():
    """Whoever forgets the call is told of it, on the first rank of a machine."""
    heard, handler = [], logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("gradsieve").addHandler(handler)
    model = fresh()
    sieve = gs.Averager(model.named_parameters(), **PRUNED)
    train(model, lambda: None, 3)
    logging.getLogger("gradsieve").removeHandler(handler)
    assert sieve.step == 0
    assert any("stepped 3 times, and average_() was never called" in line for line in heard)


def is_freed():
    model = fresh()
    sieve = gs.Averager(model.parameters(), overlap=True, **PRUNED)
    train(model, sieve.average_, 1)
    gone = weakref.ref(sieve)
    del sieve
    gc.collect()
    assert gone() is None
    # Its hooks are gone from the parameters.
    model(batch(0)).square().mean().backward()
    model(batch(0)).square().mean().backward()


def all_of():
    is_missed()
    is_freed()
    refuses()


def test_what_an_averager_is_not_made_for():
    run_ranks(2, all_of)


def loses_a_rank():
    """The gradients stay, and are in the residuals as well: they were never averaged."""
    model = fresh()
    sieve = gs.Averager(model.named_parameters(), threshold=gs.Sigma(1), values="float32")
    train(model, sieve.average_, 2)
    if dist.get_rank() == 1:
        os._exit(0)
    kept = torch.cat([residual.flatten() for residual in sieve.residuals.values()])
    model.zero_grad()
    model(batch(2)).square().mean().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    with pytest.raises(gs.ExchangeError, match="rank 1"):
        sieve.average_()
    assert torch.equal(torch.cat([p.grad.flatten() for p in model.parameters()]), gradients)
    after = torch.cat([residual.flatten() for residual in sieve.residuals.values()])
    pruned = torch.cat([torch.full((p.numel(),), p.numel() >= 256) for p in model.parameters()])
    torch.testing.assert_close(after[pruned], (kept + gradients)[pruned])
    return True


def test_a_dead_rank():
    assert run_ranks(2, loses_a_rank) == [True, None]
