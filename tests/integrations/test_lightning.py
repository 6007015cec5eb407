"""`SieveCallback` on two real ranks, as `torchrun` would start them."""

import logging
from pathlib import Path

import pytest
import torch
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
from torch.nn import functional as F

import gradsieve as gs

L = pytest.importorskip("lightning", reason="Lightning is missing: make test-integrations")

import pytorch_lightning  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from gradsieve.integrations.lightning import KEY, SieveCallback  # noqa: E402

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
PRUNED = {"threshold": gs.Sigma(1), "exchange": "gather", "min_numel": 64}
EXACT = {"threshold": gs.Fixed(0), "values": "float32", "exchange": "gather", "min_numel": 64}
BATCHES = 4
"""Batches of an epoch on each rank."""


class Net(L.LightningModule):
    def __init__(self, manual=False):
        super().__init__()
        self.net, self.losses = small_net(), []
        self.automatic_optimization = not manual

    def training_step(self, batch, index):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()
        return loss

    def validation_step(self, batch, index):
        self.agreed = same_on_all_ranks(flat(self.net))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loader():
    return torch.utils.data.DataLoader(dataset(16 * BATCHES), batch_size=8, shuffle=False)


def fit(
    *callbacks,
    net=None,
    epochs=2,
    ckpt_path=None,
    strategy="ddp",
    devices=2,
    make=L.Trainer,
    **options,
):
    net = net or Net()
    trainer = make(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=epochs,
        callbacks=[*callbacks],
        use_distributed_sampler=devices > 1,
        **(QUIET | options),
    )
    validation = loader() if options.get("limit_val_batches") else None
    trainer.fit(net, loader(), validation, ckpt_path=ckpt_path)
    return net, trainer


def exact_at_threshold_zero():
    for manual, options in (
        (False, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
        (True, {}),
    ):
        expected, _ = fit(net=Net(manual), **options)
        callback = SieveCallback(**EXACT)
        net, trainer = fit(callback, net=Net(manual), **options)
        assert callback.state.step == trainer.global_step == (8 if manual else 4)
        assert not callback.state.last.plain
        assert torch.allclose(flat(net), flat(expected), rtol=1e-5, atol=1e-7)
        assert net.losses == pytest.approx(expected.losses, rel=1e-5)


def defaults_train(tmp):
    callback = SieveCallback()
    net, trainer = fit(
        callback, epochs=4, logger=CSVLogger(tmp, "default", "0"), log_every_n_steps=2
    )
    assert sum(net.losses[-4:]) < 0.8 * sum(net.losses[:4])
    assert callback.state.totals.steps == 16
    assert "net.0.weight" in callback.state.residuals
    if trainer.is_global_zero:
        head, *rows = (tmp / "default" / "0" / "metrics.csv").read_text().splitlines()
        assert {"sieve/density", "sieve/residual_norm"} <= {*head.split(",")}
        steps = [row.split(",")[head.split(",").index("step")] for row in rows]
        assert steps == ["1", "3", "5", "7", "9", "11", "13", "15"]


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    callback = SieveCallback(**PRUNED)
    fit(callback, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert callback.state.last.loss_scale == 4096
    callback = SieveCallback(**PRUNED)
    fit(callback, precision="bf16-mixed")
    assert callback.state.step == 8
    assert callback.state.last.loss_scale == 1


def under_its_other_name():
    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = SieveCallback(**PRUNED)
    fit(callback, net=Other(), make=pytorch_lightning.Trainer)
    assert callback.state.step == 8


def resumed(tmp, **options):
    def keep(folder):
        return ModelCheckpoint(tmp / folder, "{epoch}", save_last=True, save_top_k=-1)

    callback = SieveCallback(**options)
    expected, _ = fit(callback, keep("never"), epochs=4, enable_checkpointing=True)
    residuals = dict(callback.state.residuals)
    assert differs_between_ranks([*residuals.values()])

    fit(SieveCallback(**options), keep("stopped"), enable_checkpointing=True)
    callback = SieveCallback(**options)
    net, _ = fit(callback, keep("stopped"), epochs=4, ckpt_path="last", enable_checkpointing=True)
    assert torch.equal(flat(net), flat(expected))
    assert net.losses == expected.losses[8:]
    assert all(torch.equal(callback.state.residuals[name], r) for name, r in residuals.items())
    return Path(tmp) / "stopped" / "epoch=1.ckpt"


def other_checkpoints(file, tmp, rank):
    """A checkpoint of three ranks is refused, one of two is converted; one without says so."""
    checkpoint = torch.load(file, weights_only=True)
    for name, count in (("three", 3), ("two", 2)):
        states = gs.reshard(checkpoint[KEY]["states"], count)
        changed = checkpoint[KEY] | {"world_size": count, "states": states}
        torch.save(checkpoint | {KEY: changed}, tmp / f"{name}{rank}.ckpt")
    words = words_of(
        ValueError, lambda: fit(SieveCallback(**PRUNED), ckpt_path=tmp / f"three{rank}.ckpt")
    )
    assert "gathered from 3 ranks and are loaded by 2: gs.reshard" in words
    callback = SieveCallback(**PRUNED)
    fit(callback, epochs=3, ckpt_path=tmp / f"two{rank}.ckpt")
    assert callback.state.step == 12

    del checkpoint[KEY]
    torch.save(checkpoint, tmp / f"dense{rank}.ckpt")
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("gradsieve").addHandler(handler)
    fit(SieveCallback(**PRUNED), epochs=3, ckpt_path=tmp / f"dense{rank}.ckpt")
    assert any("saved without SieveCallback" in text for text in told) == (rank == 0)


def synchronous(tmp):
    as_launched()
    exact_at_threshold_zero()
    defaults_train(tmp)
    scaled()
    under_its_other_name()
    file = resumed(tmp / "synchronous", **PRUNED)
    other_checkpoints(file, tmp, torch.distributed.get_rank())
    words = words_of(TypeError, lambda: fit(SieveCallback(treshold=gs.Fixed(0))))
    assert "did you mean threshold?" in words


def local(tmp):
    as_launched()
    callback = SieveCallback(every=3, **PRUNED)
    net, trainer = fit(
        callback,
        epochs=2,
        accumulate_grad_batches=2,
        limit_val_batches=1,
        logger=CSVLogger(tmp, "local", "0"),
        log_every_n_steps=1,
    )
    assert callback.outer.inner_steps == trainer.global_step == 4
    # Two validations and the end of fit; the one between was not due, but finished.
    assert net.agreed
    assert same_on_all_ranks(flat(net))
    if trainer.is_global_zero:
        head = (tmp / "local" / "0" / "metrics.csv").read_text().splitlines()[0]
        assert "outer/exposed_seconds" in head.split(",")

    skipping = SieveCallback(every=3, **PRUNED)
    scale = 1e38 if torch.distributed.get_rank() else 1.0
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    net, _ = fit(skipping, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() < 1e38
    assert skipping.outer.inner_steps == 8
    assert same_on_all_ranks(flat(net))

    file = resumed(tmp / "local-steps", every=3, **PRUNED)
    saved = torch.load(file, weights_only=True)
    weights = [one["model"]["net.0.weight"] for one in saved[KEY]["states"]]
    assert torch.equal(saved["state_dict"]["net.0.weight"], weights[1])
    words = words_of(ValueError, lambda: fit(SieveCallback(**PRUNED), epochs=3, ckpt_path=file))
    assert "saved with local steps, and training goes on without" in words


def test_gradients_pruned_in_each_step(tmp_path):
    run_ranks(2, synchronous, tmp_path)


def test_local_steps(tmp_path):
    run_ranks(2, local, tmp_path)


def test_a_strategy_without_ddp_is_refused():
    with pytest.raises(gs.SieveError, match=r"SingleDeviceStrategy made no DDP model .*ddp"):
        fit(SieveCallback(), devices=1, strategy="auto")
