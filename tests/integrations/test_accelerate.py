"""`attach` and `local_steps` with Accelerate, on two real ranks as `torchrun` would start them."""

import pytest
import torch
import torch.distributed as dist
from launched import (
    as_launched,
    dataset,
    differs_between_ranks,
    flat,
    same_on_all_ranks,
    small_net,
    words_of,
)
from ranks import run_ranks
from torch import nn
from torch.nn import functional as F

import gradsieve as gs

accelerate = pytest.importorskip(
    "accelerate", reason="Accelerate is missing: make test-integrations"
)

from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

from gradsieve.integrations.accelerate import attach, local_steps  # noqa: E402

PRUNED = {"threshold": gs.Sigma(1), "exchange": "gather", "min_numel": 64}
EXACT = {"threshold": gs.Fixed(0), "values": "float32", "exchange": "gather", "min_numel": 64}


class Run:
    """A model, its optimizer and its data, prepared by an accelerator of their own."""

    def __init__(self, scaler=None, **options):
        AcceleratorState._reset_state()
        GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        if scaler is not None:
            # On the CPU Accelerate makes none.
            self.accelerator.scaler = scaler
        net = small_net()
        loader = torch.utils.data.DataLoader(dataset(), batch_size=8)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            net, torch.optim.Adam(net.parameters(), lr=0.01), loader
        )

    def train(self, epochs, outer=None, clip=None):
        losses = []
        for _ in range(epochs):
            for inputs, labels in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = F.cross_entropy(self.model(inputs), labels)
                    self.accelerator.backward(loss)
                    if clip is not None and self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if outer is not None and self.accelerator.sync_gradients:
                    outer.step()
                losses.append(loss.item())
        return losses


def exact_at_threshold_zero():
    plain = Run(gradient_accumulation_steps=2)
    expected = plain.train(2, clip=0.5)
    run = Run(gradient_accumulation_steps=2)
    state = attach(run.accelerator, run.model, **EXACT)
    losses = run.train(2, clip=0.5)
    assert state.step == 4
    assert len(losses) == 8
    assert not state.last.plain
    assert losses == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(flat(run.model), flat(plain.model), rtol=1e-5, atol=1e-7)


def defaults_train():
    run = Run(mixed_precision="bf16")
    state = attach(run.accelerator, run.model)
    losses = run.train(4)
    assert state.totals.steps == 16
    assert "0.weight" in state.residuals
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def scaled():
    run = Run(scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3))
    state = attach(run.accelerator, run.model, gs.SieveConfig(**PRUNED))
    run.train(2)
    assert state.last.loss_scale == 4096


def resumed(tmp):
    def start():
        run = Run(gradient_accumulation_steps=2)
        return run, attach(run.accelerator, run.model, **PRUNED)

    run, state = start()
    run.train(2)
    run.accelerator.save_state(tmp)
    losses = run.train(2)
    expected, residuals = flat(run.model), dict(state.residuals)
    assert differs_between_ranks([*residuals.values()])
    dist.barrier()

    run, state = start()
    run.accelerator.load_state(tmp)
    assert state.step == 4
    assert run.train(2) == losses
    assert torch.equal(flat(run.model), expected)
    assert all(torch.equal(state.residuals[name], kept) for name, kept in residuals.items())


def two_models(tmp):
    """Each sieve of an accelerator has a folder of its own."""

    def start():
        run = Run()
        second = run.accelerator.prepare(nn.Linear(16, 8))
        with torch.no_grad():
            second.module.weight.fill_(0.5)
        return run, attach(run.accelerator, run.model, **PRUNED), second

    run, first, second = start()
    other = attach(run.accelerator, second, **PRUNED)
    for _ in range(3):
        run.train(1)
        second(torch.randn(4, 16)).square().mean().backward()
    run.accelerator.save_state(tmp)
    saved = first.residuals["0.weight"], other.residuals["weight"]
    dist.barrier()
    run, first, second = start()
    other = attach(run.accelerator, second, **PRUNED)
    run.accelerator.load_state(tmp)
    assert (first.step, other.step) == (12, 3)
    assert torch.equal(first.residuals["0.weight"], saved[0])
    assert torch.equal(other.residuals["weight"], saved[1])


def refused(tmp):
    run = Run()
    words = words_of(gs.SieveError, lambda: attach(run.accelerator, run.model.module))
    assert "Accelerate made no DDP model but Sequential: use what accelerator.prepare" in words
    attach(run.accelerator, run.model, **PRUNED)
    assert "already" in words_of(
        gs.SieveError, lambda: local_steps(run.accelerator, run.model, run.optimizer)
    )
    run = Run()
    local_steps(run.accelerator, run.model, run.optimizer, every=3)
    words = words_of(ValueError, lambda: run.accelerator.load_state(tmp))
    assert "saved without local steps, and training goes on with them" in words


def synchronous(tmp):
    as_launched()
    exact_at_threshold_zero()
    defaults_train()
    scaled()
    resumed(tmp / "synchronous")
    two_models(tmp / "two")
    refused(tmp / "synchronous")


def local(tmp):
    as_launched()

    def start(**options):
        run = Run(gradient_accumulation_steps=2, **options)
        outer = local_steps(run.accelerator, run.model, run.optimizer, every=3, **PRUNED)
        return run, outer

    run, outer = start()
    run.train(4, outer, clip=0.5)
    assert outer.inner_steps == 8
    assert outer.last.step == 6
    # In the middle of a phase: weights and moments differ.
    assert not same_on_all_ranks(flat(run.model))
    run.accelerator.save_state(tmp)
    losses = run.train(2, outer)
    outer.finish()
    assert same_on_all_ranks(flat(run.model))
    expected = flat(run.model)
    residuals = dict(outer.state.residuals)
    dist.barrier()

    run, outer = start()
    run.accelerator.load_state(tmp)
    assert run.train(2, outer) == losses
    outer.finish()
    assert torch.equal(flat(run.model), expected)
    assert all(torch.equal(outer.state.residuals[name], kept) for name, kept in residuals.items())

    # One rank skips a step, and counts it like the other.
    scale = 1e38 if dist.get_rank() else 1.0
    run, outer = start(scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    run.train(3, outer)
    assert run.accelerator.scaler.get_scale() < 1e38
    outer.finish()
    assert outer.inner_steps == 6
    assert same_on_all_ranks(flat(run.model))


def test_gradients_pruned_in_each_step(tmp_path):
    run_ranks(2, synchronous, tmp_path)


def test_local_steps(tmp_path):
    run_ranks(2, local, tmp_path)


def test_one_process_is_refused():
    PartialState._reset_state()
    run = Run()
    with pytest.raises(gs.SieveError, match=r"but Sequential: use .* accelerate launch"):
        attach(run.accelerator, run.model)
