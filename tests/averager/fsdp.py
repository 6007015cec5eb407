"""Small models sharded by FSDP2, on a mesh of replicas and shards."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

FEATURES = 32
MAP = torch.randn(FEATURES, 10, generator=torch.Generator().manual_seed(7))


def mesh_of(replicas, shards):
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))


def net():
    """129 rows are divided unevenly; of the last layer's one row, all ranks but one hold none."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, 129), nn.ReLU(), nn.Linear(129, 10)
    )


def sharded(model, mesh, **options):
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def batch(generator):
    inputs = torch.randn(16, FEATURES, generator=generator)
    return inputs, (inputs @ MAP).argmax(1)


def train(model, average=None, steps=6, clip=None, accumulate=1, around=None, seed=100):
    """Train with batches of this rank's own; `around(last)` is a context of each backward pass."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(seed + dist.get_rank())
    for _ in range(steps):
        for number in range(accumulate):
            inputs, labels = batch(generator)
            loss = nn.functional.cross_entropy(model(inputs).float(), labels) / accumulate
            if around is None:
                loss.backward()
            else:
                with around(number == accumulate - 1):
                    loss.backward()
        if average is not None:
            average()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return whole(model)


def whole(model):
    """Return all weights of a model, flat, with all shards of them."""
    return torch.cat([full(p.detach()).reshape(-1) for p in model.parameters()])


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
