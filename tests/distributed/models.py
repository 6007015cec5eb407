"""Small models and a training loop for tests with real ranks."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.bucket import plan


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


class Crossed(nn.Module):
    """Layers that run in another order than they are defined in, so that DDP rebuilds its buckets
    in another order than the first."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(30, 5)
        self.first = nn.Linear(20, 40)
        self.middle = nn.Linear(40, 30)

    def forward(self, x):
        return self.last(self.middle(self.first(x).relu()).relu())


def smaller_pieces():
    """Cut the small parameters of these tests as a two-shot exchange cuts large ones."""
    plan.SMALLEST_PIECE = 100


def on_every_rank(found):
    """Whether `found` holds on all ranks; also a barrier."""
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, bool(found))
    return all(everywhere)


class Ledger:
    """The sieve behind a hook that keeps what went in, to check that nothing is lost.

    Without rotation, unless it is asked for: in its coefficients laws hold to rounding only.

    `step` is a whole step; `open`, a backward pass of the caller's and `check` are its parts.
    """

    def __init__(self, model, *, state=None, **settings):
        self.model = model
        self.state = state
        if state is None:
            self.state = gs.SieveState(**({"rotation": 0} | settings))
            self.state.bind(model)
        self.buckets = buckets = []
        self.gradients = gradients = {}
        names = {id(p): name for name, p in model.module.named_parameters()}

        # DDP keeps the hook for ever: with the ledger in it, it would keep the model too.
        def hook(
            state: gs.SieveState, bucket: dist.GradBucket
        ) -> torch.futures.Future[torch.Tensor]:
            parameters = bucket.parameters()
            buckets.append([names[id(p)] for p in parameters])
            for parameter, flat in zip(parameters, bucket.gradients(), strict=True):
                # The bucket holds a gradient in its parameter's order in memory.
                gradient = flat.as_strided(parameter.shape, parameter.stride())
                gradients[names[id(parameter)]] = gradient.float().clone()
            return gs.sieve_hook(state, bucket)

        model.register_comm_hook(self.state, hook)

    def step(self, optimizer, *inputs, rtol=1e-5):
        self.open()
        optimizer.zero_grad()
        self.model(*inputs).square().mean().backward()
        self.check(rtol)
        optimizer.step()

    def open(self):
        self.before = self.counting_residuals()
        self.owned_before = self.state.owned_residuals
        self.buckets.clear()
        self.gradients.clear()

    def counting_residuals(self):
        """As often as they count among the ranks: where a node's ranks keep a piece each, so many
        times."""
        states = self.state.sieve.parameters.states
        return {
            name: residual * (states[name].dealt.size if states[name].dealt else 1)
            for name, residual in self.state.residuals.items()
        }

    def check(self, rtol=1e-5):
        """What was averaged is what the ranks have sent, less what its owner has kept of the sum,
        and the rest is in the residuals."""
        after, owned = self.counting_residuals(), self.state.owned_residuals
        dealt = self.state.last.exchange == "hierarchical"
        exact = (
            self.state.config.values == "float32" and not self.state.config.rotation and not dealt
        )
        for name, parameter in self.model.module.named_parameters():
            if not parameter.requires_grad:
                continue
            gradient = self.gradients[name]
            accumulated = self.before[name] + gradient
            sent = accumulated - after[name]
            if exact:
                kept = torch.where(after[name] == 0, 0.0, accumulated)
                assert torch.equal(after[name], kept), name
            total = sent.clone()
            # Each rank rounds what it sends, and the owner of a sum rounds that.
            largest = dist.get_world_size() * torch.maximum(
                total.abs().max(), accumulated.abs().max()
            )
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            if name in owned:
                total -= dist.get_world_size() * (owned[name] - self.owned_before[name])
            dist.all_reduce(total)
            averaged = torch.zeros(()) if parameter.grad is None else parameter.grad.float()
            torch.testing.assert_close(
                averaged.expand_as(total) * dist.get_world_size(),
                total,
                rtol=rtol,
                atol=rtol * float(largest),
                msg=lambda text, name=name: f"{name}: {text}",
            )
