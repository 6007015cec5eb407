"""Runs of two nodes of two ranks, on models that the ranks of a node hold together."""

import os

import pytest
import torch
from ranks import run_ranks
from torch import nn

from gradsieve.lab.runs.config import RunConfig
from gradsieve.lab.runs.train import trained
from gradsieve.lab.workloads.workload import WORKLOADS, Judged, Workload, cross_entropy

UNPRUNED = "fsdp-sieve:fixed=0,values=float32,rotation=0"


def batches(rank, ranks, seed):
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    while True:
        inputs = torch.randn(8, 24, generator=generator)
        yield inputs, inputs[:, :6].argmax(1)


@torch.no_grad()
def loss(model, rank, ranks):
    """Three batches among two nodes: ranks that judge shares of their own would not all call."""
    inputs, targets = next(batches(99, 1, 0))
    mine = list(zip(inputs.split(3), targets.split(3), strict=True))[rank::ranks]
    total = sum(cross_entropy(model, i, t).item() * len(t) for i, t in mine)
    return Judged(total, sum(len(t) for _, t in mine))


WORKLOAD = Workload(
    name="tiny",
    make_model=lambda: nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 6)),
    make_optimizer=lambda model, rate: torch.optim.SGD(model.parameters(), lr=rate),
    learning_rate=0.5,
    batches=batches,
    metric=loss,
    metric_name="loss",
    higher_is_better=False,
)


def results(folder):
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    WORKLOADS["tiny"] = f"{__name__}:WORKLOAD"
    found = {}
    for method in ("ddp", "hsdp", UNPRUNED, "fsdp-alone"):
        run = RunConfig(
            workload="tiny",
            method=method,
            ranks=4,
            ranks_per_node=2,
            steps=6,
            warmup_steps=2,
            directory=f"{folder}/{method}",
            interface="lo",
            link="loopback",
            learning_rate=0.5,
        )
        found[method] = trained(run)
    return found


def test_shards_train_as_ddp_does(tmp_path):
    of_all = run_ranks(4, results, str(tmp_path))
    ddp, hsdp, unpruned, alone = of_all[0].values()
    assert ddp.metric > 0
    for same in (hsdp, unpruned):
        assert same.metric == pytest.approx(ddp.metric, abs=1e-5)
    assert alone.metric is None
    for found in of_all[0].values():
        assert (found.ranks, found.ranks_per_node) == (4, 2)
        assert found.step_seconds > 0 < found.limit_seconds
    # Each rank sends the elements that it holds, half of the model.
    assert unpruned.bits_per_parameter == pytest.approx(32, rel=0.3)
    metrics = [{method: found.metric for method, found in own.items()} for own in of_all]
    assert all(own == metrics[0] for own in metrics)
