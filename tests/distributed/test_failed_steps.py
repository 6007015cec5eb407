"""A step that fails half way loses nothing: all that it has sent returns to the residuals."""

import gc

import pytest
import torch
import torch.distributed as dist
from models import Ledger, batch, build, same_on_all_ranks, train
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs

POLICY = {"threshold": gs.Density(0.05), "min_numel": 100}


def corrupted(damage):
    rank = dist.get_rank()
    model = build(bucket_cap_mb=0.005)
    ledger = Ledger(model, **POLICY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        ledger.step(optimizer, batch(step))
    transport = ledger.state.engine.groups.everyone
    whole = transport.to_all
    calls = []

    def broken(frame):
        arrived = whole(frame)
        calls.append(frame)
        if rank == 1 and len(calls) == 2:
            arrived[0] = damage(arrived[0].clone())
        return arrived

    transport.to_all = broken
    ledger.open()
    optimizer.zero_grad()
    found = None
    try:
        model(batch(3)).square().mean().backward()
    except (gs.FrameError, gs.ExchangeError) as error:
        found = error
    for name, residual in ledger.state.residuals.items():
        gradient = ledger.gradients.get(name, torch.zeros(()))
        back = torch.equal(residual, ledger.before[name] + gradient)
        assert back or (found is None and rank == 0), name
    return type(found).__name__, str(found)


def flip(frame):
    frame[-3] ^= 16
    return frame


def cut(frame):
    return frame[:-4]


@pytest.mark.parametrize(("damage", "field"), [(flip, "crc32"), (cut, "bytes")])
def test_a_damaged_frame_raises_and_nothing_is_lost(damage, field):
    _, (kind, message) = run_ranks(2, corrupted, damage)
    assert kind == "FrameError"
    assert f"frame field {field}" in message


def fail(gradient):
    raise RuntimeError("the loss function failed")


def stopped_in_mid_step():
    model = build()
    ledger = Ledger(model, **POLICY)
    for step in range(2):
        ledger.step(torch.optim.SGD(model.parameters(), lr=0.1), batch(step))
    ledger.open()
    handle = model.module.one.weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="the loss function failed"):
        model(batch(2)).square().mean().backward()
    handle.remove()
    assert 0 < len(ledger.gradients) < 6
    expected = {
        name: residual + ledger.gradients.get(name, 0) for name, residual in ledger.before.items()
    }

    # A file that an error handler tries in vain changes nothing.
    with pytest.raises(ValueError, match="version 99"):
        ledger.state.load_state_dict({"version": 99})

    # A checkpoint written now, by an error handler, has everything.
    saved = ledger.state.state_dict()["parameters"]
    for name, residual in expected.items():
        torch.testing.assert_close(saved[name]["residual"], residual)

    # DDP cannot go on after that; another one around the same network can, with the same state.
    module, state = model.module, ledger.state
    del model, ledger, handle
    gc.collect()
    module.zero_grad()
    again = Ledger(DDP(module), state=state)
    again.open()
    again.before = expected
    again.model(batch(3)).square().mean().backward()
    again.check()
    assert state.step == 3


def test_a_backward_pass_that_fails_half_way_leaves_nothing_behind():
    run_ranks(2, stopped_in_mid_step)


class Raises:
    """An observer that raises at the end of a step, after which bases turn."""

    def see_gradients(self, step, parameters, gradients):
        pass

    def end_step(self, record):
        if dist.get_rank() == 0:
            raise RuntimeError("mine")


def an_observer_raises():
    model = build()
    state = gs.attach(model, **POLICY, exchange="gather", rotation=16)
    state.observers.append(Raises())
    try:
        train(model, 1)
        raised = None
    except RuntimeError as error:
        raised = str(error)
    assert raised == ("mine" if dist.get_rank() == 0 else None)
    state.observers.clear()
    network = model.module
    del model
    gc.collect()
    network.zero_grad()
    for parameter in network.parameters():
        # The optimizer of rank 0 has not stepped.
        dist.broadcast(parameter.data, src=1)
    again = DDP(network)
    again.register_comm_hook(state, gs.sieve_hook)
    train(again, 3, first=1)
    assert same_on_all_ranks(again)
    assert state.step == 4


def test_an_observer_s_error_on_one_rank_leaves_the_bases_of_all_alike():
    run_ranks(2, an_observer_raises)


def a_step_number_is_set_within_a_step():
    model = build(bucket_cap_mb=0.001)
    state = gs.attach(model, **POLICY, exchange="gather", start_step=5)
    train(model, 3)
    parameter = next(iter(model.parameters()))
    handle = parameter.register_hook(lambda gradient: setattr(state, "step", 50))
    train(model, 1, first=3)
    handle.remove()
    assert (state.last.step, state.last.exchange, state.step) == (3, "plain", 51)
    train(model, 1, first=4)
    assert state.last.exchange == "gather"
    assert same_on_all_ranks(model)


def test_a_step_number_that_is_set_within_a_step_holds_from_the_next():
    run_ranks(2, a_step_number_is_set_within_a_step)
