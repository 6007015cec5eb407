"""Pruning in bases that follow the gradients: laws hold, and ranks that differ say so."""

import gc
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from models import Crossed, Ledger, batch, build, same_on_all_ranks, smaller_pieces, train, weights
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.codec import VALUES
from gradsieve.saved.seal import sealed
from gradsieve.saved.sieve import lines_of

SETTINGS = {"rotation": 16, "min_numel": 100}


def nothing_is_lost(exchange):
    smaller_pieces()
    for values in VALUES:
        for policy in (gs.Density(0.1), gs.UnsentMean(4.0), gs.Sigma(1.0, of="balanced")):
            model = build(Crossed)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            ledger = Ledger(model, threshold=policy, values=values, exchange=exchange, **SETTINGS)
            for step in range(12):
                ledger.step(optimizer, batch(step), rtol=1e-4)
                assert same_on_all_ranks(model), (policy, values)
            if exchange == "two-shot":
                # What owners had pruned has moved there since the step's record.
                continue
            squares = [r.square().sum() for r in ledger.state.residuals.values()]
            assert ledger.state.last.residual_norm == pytest.approx(
                float(sum(squares) ** 0.5), rel=1e-3
            )


@pytest.mark.parametrize(("count", "exchange"), [(2, "gather"), (3, "gather"), (3, "two-shot")])
def test_nothing_is_lost_and_ranks_agree(count, exchange):
    run_ranks(count, nothing_is_lost, exchange)


def threshold_zero_is_ddp():
    plain, sieved = build(), build()
    gs.attach(sieved, threshold=gs.Fixed(0.0), values="float32", **SETTINGS)
    train(plain, 12)
    train(sieved, 12)
    torch.testing.assert_close(weights(sieved), weights(plain), rtol=1e-4, atol=1e-5)


def test_threshold_zero_is_ddp():
    run_ranks(2, threshold_zero_is_ddp)


def ranks_with_unlike_threads():
    torch.set_num_threads(1 + dist.get_rank())
    model = build(Crossed)
    gs.attach(model, threshold=gs.Sigma(1.0, of="balanced"), **SETTINGS)
    train(model, 25)
    assert same_on_all_ranks(model)


def test_threads_do_not_part_the_replicas():
    run_ranks(2, ranks_with_unlike_threads)


def a_state_without_rotation():
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.1), **SETTINGS)
    train(model, 2)
    plain = build()
    plain.load_state_dict(model.state_dict())
    other = gs.attach(plain, threshold=gs.Density(0.1), **SETTINGS | {"rotation": 0})
    with pytest.raises(ValueError, match="rotation was 16 and is 0 here"):
        other.load_state_dict(state.state_dict())
    with pytest.raises(ValueError, match="rotation was 0 and is 16 here"):
        state.load_state_dict(other.state_dict())
    narrower = SETTINGS | {"rotation": 8}
    saved = sealed(state.state_dict() | {"settings": lines_of(other.sieve.settings)})
    with pytest.raises(ValueError, match="has a rotation, this one has the opposite"):
        other.load_state_dict(saved)
    again = build()
    again.load_state_dict(model.state_dict())
    narrow = gs.attach(again, threshold=gs.Density(0.1), **narrower)
    saved = sealed(state.state_dict() | {"settings": lines_of(narrow.sieve.settings)})
    with pytest.raises(ValueError, match="saved rotation has vectors"):
        narrow.load_state_dict(saved)


def test_a_state_of_another_rotation_is_refused():
    run_ranks(1, a_state_without_rotation)


def blocks_of_another_size():
    model = build()
    gs.attach(model, rotation=8 + 8 * dist.get_rank(), min_numel=100)
    with pytest.raises(gs.SieveError, match="rotation"):
        train(model, 1)


def bases_that_have_parted():
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.1), **SETTINGS)
    train(model, 2)
    state.engine.finish()
    if dist.get_rank():
        rotation = state.sieve.parameters.states["one.weight"].rotation
        rotation.bases[0].covariance[0, 0] *= 1.01
    with pytest.raises(gs.FrameError, match="layout"):
        train(model, 4, first=2)


@pytest.mark.parametrize("differ", [blocks_of_another_size, bases_that_have_parted])
def test_ranks_that_differ_raise_on_all(differ):
    run_ranks(2, differ)


def layouts():
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(
            torch.nn.Conv2d(4, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3)
        ).to(memory_format=torch.channels_last)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ledger = Ledger(model, threshold=gs.Density(0.1), **SETTINGS)
    for step in range(8):
        images = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        ledger.step(optimizer, images.to(memory_format=torch.channels_last), rtol=1e-4)
        assert same_on_all_ranks(model)


def test_filters_in_any_memory_format():
    run_ranks(2, layouts)


def a_nonfinite_gradient():
    model = build()
    ledger = Ledger(model, threshold=gs.Density(0.1), **SETTINGS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        ledger.step(optimizer, batch(step), rtol=1e-4)
    ledger.open()
    bad = batch(3)
    if dist.get_rank() == 0:
        bad[0, 0] = torch.inf
    optimizer.zero_grad()
    model(bad).square().mean().backward()
    assert not bool(model.module.one.weight.grad.isfinite().all())
    state = ledger.state
    assert state.last.nonfinite == sum(
        int(g.numel() - g.isfinite().sum()) for g in ledger.gradients.values()
    )
    # No optimizer should use this step: it leaves nothing behind.
    assert all(torch.equal(kept, ledger.before[n]) for n, kept in state.residuals.items())
    optimizer.zero_grad()
    for step in range(4, 8):
        ledger.step(optimizer, batch(step), rtol=1e-4)
    assert bool(weights(model).isfinite().all())


def test_a_nonfinite_gradient_reaches_the_training_loop_and_no_residual():
    run_ranks(2, a_nonfinite_gradient)


ENDS_AT_ONCE = """
import sys, torch, torch.distributed as dist, gradsieve as gs
from torch.nn.parallel import DistributedDataParallel as DDP
rank, path, exchange = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
model = DDP(torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4))))
gs.attach(model, threshold=gs.Density(0.01), exchange=exchange, rotation=256)
for _ in range(3):
    model(torch.randn(4, 512)).square().mean().backward()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("exchange", ["gather", "dense"])
def test_a_process_may_end_right_after_its_last_step(exchange, tmp_path):
    """Bases turn then, or threads of torch still clean up after an all-reduce."""
    arguments = [str(tmp_path / "store"), exchange]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ENDS_AT_ONCE, str(rank), *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told


def held_residuals():
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.05), **SETTINGS)
    residuals = state.residuals
    for step in range(12):
        before = residuals["one.weight"]
        train(model, 1, first=step)
        turning = residuals["one.weight"]
        state.engine.finish()
        assert torch.equal(turning, residuals["one.weight"])
        assert not torch.equal(before, turning)


def test_residuals_may_be_read_at_any_time():
    run_ranks(2, held_residuals)


def cut_short():
    def average_of(model, state):
        train(model, 1, first=3)
        return state.state_dict()["mean_square"]

    def start():
        model = build()
        state = gs.attach(model, threshold=gs.Sigma(1.0, of="balanced"), **SETTINGS)
        train(model, 3)
        return model, state

    expected = average_of(*start())
    model, state = start()

    def fail(gradient):
        raise KeyError("in the backward pass")

    handle = model.module.one.weight.register_hook(fail)
    with pytest.raises(KeyError):
        (1e3 * model(batch(3))).square().mean().backward()
    handle.remove()
    module = model.module
    del model, handle
    gc.collect()
    again = DDP(module, bucket_cap_mb=0.005)
    again.register_comm_hook(state, gs.sieve_hook)
    assert average_of(again, state) == pytest.approx(expected)


def test_a_step_that_was_cut_short_is_not_in_the_average():
    run_ranks(1, cut_short)
