"""Groups that a test makes by hand, and the local steps of their ranks."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from local_steps import average
from models import Net, smaller_pieces
from ranks import leave_group
from torch import nn

import gradsieve as gs

BATCH = torch.randn(64, 20, generator=torch.Generator().manual_seed(7))
WANTED = BATCH[:, :5].relu()


class Forwarding(dist.ProcessGroup):
    """As a manager hands out its group: of unknown rank, and size 1 to torch."""

    def __init__(self, inner):
        super().__init__(0, 1)
        self.inner = inner

    def size(self):
        return self.inner.size()

    def alltoall_base(self, received, sent, arriving, leaving, options):
        return self.inner.alltoall_base(received, sent, arriving, leaving, options)


STORES = []
"""The store of this process."""


def open_store():
    """Open a store that rank 0 holds. All ranks call it together, in the group of the test."""
    os.environ["TEST_RANK"] = str(dist.get_rank())
    is_first = dist.get_rank() == 0
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if is_first else 0
    port = [store.port if is_first else 0]
    dist.broadcast_object_list(port)
    STORES.append(store or dist.TCPStore("127.0.0.1", port[0]))


def alone():
    """Only the groups that are made by hand are left."""
    open_store()
    leave_group()
    smaller_pieces()


class Job:
    """Makes groups of the ranks of a test by hand, each by a name that they share."""

    def __init__(self, name, wrap=lambda group: group):
        self.rank, self.wrap = int(os.environ["TEST_RANK"]), wrap
        self.store = dist.PrefixStore(name, STORES[0])

    def group(self, *ranks):
        """A group of these ranks, in this order; None for the others."""
        if self.rank not in ranks:
            return None
        self.ranks = ranks
        store = dist.PrefixStore(str(ranks), self.store)
        self.plain = dist.ProcessGroupGloo(
            store, ranks.index(self.rank), len(ranks), timedelta(seconds=40)
        )
        return self.wrap(self.plain)

    def agree(self, *tensors):
        mine = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        others = [torch.empty_like(mine) for _ in self.ranks]
        self.plain.allgather([others], [mine]).wait()
        return all(torch.equal(mine, other) for other in others)

    def barrier(self, name):
        """Wait for all ranks of the test, in a group or not."""
        for part in (name, f"{name} read"):
            self.store.set(f"{part}/{self.rank}", "here")
            if part == name or self.rank == 0:
                self.store.wait([f"{part}/{rank}" for rank in range(4)], timedelta(seconds=40))


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(40)

    def forward(self, x):
        return self.three(self.two(self.norm(self.one(x)).relu()).relu())


def begin(job, group, seed=0, **options):
    torch.manual_seed(10 * job.rank + seed)
    net = Normed()
    options = {"every": 4, "optimizer": average, "min_numel": 100} | options
    outer = gs.OuterSync(net, process_group=group, **options)
    assert job.agree(*net.parameters(), *net.buffers()), "they begin alike"
    return net, outer, torch.optim.Adam(net.parameters(), lr=0.01)


def loss_of(net):
    part = slice(int(os.environ["TEST_RANK"]) * 16, None)
    return (net(BATCH[part]) - WANTED[part]).square().mean()


def train(net, outer, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
        outer.step()
    return float(loss_of(net).detach())


def unsent(outer, ranks):
    """What a rank has not sent, in units of its own."""
    owned = outer.state.owned_residuals
    return {name: r + ranks * owned[name] for name, r in outer.state.residuals.items()}


def own_of(outer):
    """What a rank has not sent of its own."""
    found = {name: outer._exchange.unsent(name) for name in outer.state.residuals}
    return {name: own for name, own in found.items() if own is not None}


def require_same(found, expected, *, is_exact=False):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if is_exact:
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def all_alike(job, net, outer):
    scale = torch.tensor([outer.state.sieve.thresholds.scale])
    bases = [
        basis
        for parameter in outer.state.sieve.parameters
        if parameter.rotation is not None
        for basis in parameter.rotation.save().values()
        if isinstance(basis, torch.Tensor)
    ]
    outer_weights = [weights for _, weights in outer._weights.named]
    statistics = [net.norm.running_mean, net.norm.running_var]
    return job.agree(*net.parameters(), *statistics, *outer_weights, scale, *bases)


SIGMA = {"threshold": gs.Sigma(1.0), "exchange": "gather"}
