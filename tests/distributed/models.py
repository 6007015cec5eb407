"""Small models and a training loop for tests with real ranks."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


class Net(nn.Module):
    """Two pruned matrices, biases that travel whole."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(20, 40)
        self.two = nn.Linear(40, 30)
        self.three = nn.Linear(30, 5)

    def forward(self, x):
        return self.three(self.two(self.one(x).relu()).relu())


def build(make=Net, seed=0, **options):
    torch.manual_seed(seed)
    return DDP(make(), **({"bucket_cap_mb": 0.005} | options))


def batch(step, rank=None, size=8, features=20):
    rank = dist.get_rank() if rank is None else rank
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(size, features, generator=generator)


def train(model, steps, first=0, lr=0.1, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    return optimizer


def weights(model):
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def same_on_all_ranks(model):
    mine = weights(model)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return all(torch.equal(mine, other) for other in gathered)
