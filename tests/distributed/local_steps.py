"""Small models and a training loop for tests of local steps."""

import torch
import torch.distributed as dist
from models import Net, batch, weights
from torch import nn

import gradsieve as gs


def average(parameters):
    """An outer optimizer that takes the ranks' mean."""
    return torch.optim.SGD(parameters, lr=1.0)


def build(make=Net, seed=0):
    torch.manual_seed(seed)
    return make()


def train(net, outer, steps, first=0, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        net(batch(step).to(next(net.parameters()).dtype)).square().mean().backward()
        optimizer.step()
        outer.step()
    return optimizer


def mean_of_ranks(net):
    total = weights(net)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def exact(**options):
    return {"threshold": gs.Fixed(0.0), "values": "float32", "exchange": "gather"} | options


class Normed(nn.Module):
    """Statistics, a tied, a frozen and a cached tensor."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 20)
        self.norm = nn.BatchNorm1d(20)
        self.tied = nn.Linear(20, 20)
        self.tied.weight = self.one.weight
        self.frozen = nn.Linear(20, 20).requires_grad_(False)
        self.register_buffer("order", torch.randperm(20))
        self.register_buffer("mask", torch.full((3,), -torch.inf), persistent=False)

    def forward(self, x):
        return self.frozen(self.tied(self.norm(self.one(x)).relu()))
