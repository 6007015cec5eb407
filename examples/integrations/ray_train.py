"""A network on two workers of Ray Train, on random data; run it again to train on:
python examples/integrations/ray_train.py
"""

import os
import tempfile
from typing import Any

import ray
import torch
from ray import train
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch import nn
from torch.nn import functional as F

import gradsieve as gs

STEPS, SAVED_EVERY = 40, 20


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(1000 * step + rank))
    return inputs, inputs[:, :10].argmax(1)


def work(config: dict[str, Any]) -> None:
    rank = train.get_context().get_world_rank()
    torch.manual_seed(0)
    model = prepare_model(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    sieve = gs.attach(model, threshold=gs.Sigma(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = 0

    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(f"{folder}/model.pt", weights_only=True)
            model.module.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            gs.checkpoint.load(sieve, folder)  # after the model
            first = saved["step"]

    for step in range(first, first + config["steps"]):
        inputs, labels = batch(step, rank)
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % SAVED_EVERY == 0:
            with tempfile.TemporaryDirectory() as folder:
                gs.checkpoint.save(sieve, folder)  # on every worker
                if rank == 0:
                    saved = {"model": model.module.state_dict(), "step": step + 1}
                    saved["optimizer"] = optimizer.state_dict()
                    torch.save(saved, f"{folder}/model.pt")
                metrics = {"step": step + 1, "loss": loss.item(), **sieve.last.scalars()}
                train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)  # on a cluster: ray.init()
    trainer = TorchTrainer(
        work,
        train_loop_config={"steps": STEPS},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(name="sieve", storage_path=os.path.abspath("ray-run")),
    )
    result = trainer.fit()
    for name in ("step", "loss", "sieve/bits_per_parameter"):
        print(name, round(result.metrics[name], 3))
    print("saved:", *sorted(os.listdir(result.checkpoint.path)))
    ray.shutdown()
