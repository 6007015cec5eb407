"""Residuals lie as the gradients do in DDP's buckets, whenever a parameter's strides change."""

from itertools import cycle

import torch
import torch.distributed as dist
from models import same_on_all_ranks, smaller_pieces
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.deep = nn.Conv2d(8, 16, 3)
        self.out = nn.Linear(16, 12)

    def forward(self, x):
        return self.out(self.deep(self.conv(x).relu()).mean((2, 3)))


def last_channels(model):
    model.to(memory_format=torch.channels_last)


def usual(model):
    model.to(memory_format=torch.contiguous_format)


def crossed(model):
    """Every matrix by columns."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.transpose(0, 1).contiguous().transpose(0, 1)


def nothing(model):
    pass


class Law:
    """What went in, in the parameters' own order, and what must come of it."""

    def __init__(self, model, state):
        self.model, self.state = model, state
        self.gradients = gradients = {}

        def hook(
            state: gs.SieveState, bucket: dist.GradBucket
        ) -> torch.futures.Future[torch.Tensor]:
            for parameter in bucket.parameters():
                gradients[parameter] = parameter.grad.detach().clone()
            return gs.sieve_hook(state, bucket)

        model.register_comm_hook(state, hook)

    def owed(self):
        """What all ranks owe together, in units of a rank's gradient."""
        ranks, found = dist.get_world_size(), {}
        owned, states = self.state.owned_residuals, self.state.sieve.parameters.states
        for name, residual in self.state.residuals.items():
            dealt = states[name].dealt
            found[name] = residual * (dealt.size if dealt else 1) + ranks * owned[name]
            dist.all_reduce(found[name])
        return found

    def step(self, number):
        before = self.owed()
        self.model.zero_grad()
        generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
        images = torch.randn(2, 3, 8, 8, generator=generator)
        self.model(images).square().mean().backward()
        after = self.owed()
        for parameter in self.model.parameters():
            name = self.state.sieve.parameters.known(parameter).name
            total = self.gradients[parameter].clone()
            dist.all_reduce(total)
            if name in after:
                total += before.get(name, 0) - after[name]
            mean, averaged = total / dist.get_world_size(), parameter.grad
            torch.testing.assert_close(
                averaged, mean, rtol=1e-4, atol=1e-6 + 1e-4 * float(mean.abs().max())
            )
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter -= 0.1 * parameter.grad
        return max((float(left.abs().max()) for left in after.values()), default=0.0)


SETTINGS = [
    {"exchange": "gather"},
    {"exchange": "gather", "rotation": 16},
    {"exchange": "two-shot"},
    {"exchange": "two-shot", "rotation": 16},
    {"exchange": "hierarchical", "node_size": 2, "rotation": 16},
    {"exchange": "hierarchical", "node_size": 2},
]
CHANGES = [
    # Before attach, and before the steps of these numbers.
    {-1: last_channels},
    {0: last_channels},
    {1: last_channels},
    {3: last_channels},
    {-1: last_channels, 0: usual, 1: last_channels, 3: crossed},
    {0: crossed, 2: usual},
]
OPTIONS = [
    {},
    {"gradient_as_bucket_view": True},
    {"find_unused_parameters": True},
    {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    {"static_graph": True},
]


def strides_change():
    smaller_pieces()
    settings, options, bound = cycle(SETTINGS), cycle(OPTIONS), cycle([True, True, False])
    for change in CHANGES:
        for _ in range(2):
            trained(change, next(options), next(settings), bound=next(bound))


def trained(changes, options, settings, *, bound):
    torch.manual_seed(0)
    model = DDP(Images(), bucket_cap_mb=0.002, **options)
    changes.get(-1, nothing)(model)
    state = gs.SieveState(threshold=gs.Density(0.1), values="float32", min_numel=100, **settings)
    if bound:
        state.bind(model)
    law = Law(model, state)
    for number in range(5):
        changes.get(number, nothing)(model)
        assert law.step(number) > 0 or not (bound or number), "something is owed"
    assert same_on_all_ranks(model)


def test_nothing_is_lost_where_strides_change():
    run_ranks(2, strides_change)
