"""Small models sharded by FSDP2, on a mesh of replicas and shards."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

FEATURES = 32
MAP = torch.randn(FEATURES, 10, generator=torch.Generator().manual_seed(7))


def mesh_of(replicas, shards):
    return dist.init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))


def net():
    """The 129 rows are cut unevenly, and of the single row one rank holds nothing."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 129), nn.ReLU(), nn.Linear(129, 1), nn.Linear(1, 64), nn.Linear(64, 10)
    )


def sharded(mesh, **options):
    model = net()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


class Training:
    """Trains with batches of this rank's own.

    Args:
        average: called after the backward passes of a step.
        no_sync: makes the context of all backward passes of a step but the last.
    """

    def __init__(self, model, average=None, *, clip=None, accumulate=1, no_sync=nullcontext):
        self.model, self.average, self.clip = model, average, clip
        self.accumulate, self.no_sync = accumulate, no_sync
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        self.generator = torch.Generator().manual_seed(100 + dist.get_rank())

    def run(self, steps=5):
        for _ in range(steps):
            self.optimizer.zero_grad()
            for number in range(self.accumulate):
                inputs = torch.randn(16, FEATURES, generator=self.generator)
                loss = nn.functional.cross_entropy(
                    self.model(inputs).float(), (inputs @ MAP).argmax(1)
                )
                with self.no_sync() if number < self.accumulate - 1 else nullcontext():
                    (loss / self.accumulate).backward()
            if self.average is not None:
                self.average()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
        return whole(self.model)


def whole(model):
    """Return all weights of a model, flat, with all shards of them."""
    parts = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([part.detach().reshape(-1) for part in parts])


def same_on_all_ranks(weights):
    gathered = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, weights)
    return all(torch.equal(weights, other) for other in gathered)
