"""Local steps of a DDP model that somebody else has made."""

import pytest
import torch
from launched import dataset, flat, same_on_all_ranks, small_net, words_of
from ranks import run_ranks
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.integrations.ddp_models import ddp_model
from gradsieve.integrations.local_state import LocalState
from gradsieve.integrations.local_steps import scalars_of, train_locally

OPTIONS = {"every": 3, "threshold": gs.Sigma(1), "exchange": "gather", "min_numel": 64}


class WithUnused(nn.Module):
    """Each rank uses another head, and BatchNorm has buffers."""

    def __init__(self):
        super().__init__()
        self.net, self.norm = small_net(), nn.BatchNorm1d(8)
        self.heads = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    def forward(self, x):
        return self.heads[dist.get_rank()](self.norm(self.net(x)))


def train(model, outer, optimizer, steps, first=0):
    inputs, labels = dataset().tensors
    for step in range(first, first + steps):
        mine = slice(16 * (step % 2) + 8 * dist.get_rank(), None)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[mine][:8]), labels[mine][:8]).backward()
        optimizer.step()
        outer.step()


def as_without_ddp():
    net = WithUnused()
    outer = gs.OuterSync(net, **OPTIONS)
    train(net, outer, torch.optim.Adam(net.parameters(), lr=0.01), 8)
    expected = flat(net)

    model = DDP(WithUnused())
    outer = train_locally(model, **OPTIONS)
    train(model, outer, torch.optim.Adam(model.parameters(), lr=0.01), 8)
    assert torch.equal(flat(model), expected)
    assert not same_on_all_ranks(flat(model))
    assert not same_on_all_ranks(model.module.norm.running_mean)
    assert scalars_of(outer)["outer/every"] == 3
    assert "already" in words_of(gs.SieveError, lambda: gs.attach(model))
    outer.finish()
    assert same_on_all_ranks(flat(model))


def ended_no_sync():
    """A framework that asks DDP to synchronize gets each rank's own gradients."""
    model = DDP(small_net())
    train_locally(model, **OPTIONS)
    model.require_backward_grad_sync = True
    inputs = dataset().tensors[0][dist.get_rank() :]
    model(inputs).square().mean().backward()
    own = small_net()
    own(inputs).square().mean().backward()
    assert torch.allclose(model.module[0].weight.grad, own[0].weight.grad)


def resumed(tmp):
    def start():
        model = DDP(WithUnused())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        outer = train_locally(model, delay=1, **OPTIONS)
        return model, outer, optimizer, LocalState(outer, [optimizer], model.module)

    model, outer, optimizer, own = start()
    train(model, outer, optimizer, 4)
    # An exchange is under way.
    gs.checkpoint.save(own, tmp)
    train(model, outer, optimizer, 5, first=4)
    expected, residuals = flat(model), dict(outer.state.residuals)

    model, outer, optimizer, own = start()
    gs.checkpoint.load(own, tmp)
    train(model, outer, optimizer, 5, first=4)
    assert torch.equal(flat(model), expected)
    assert all(torch.equal(outer.state.residuals[name], kept) for name, kept in residuals.items())

    saved = own.state_dict()
    more = saved | {"optimizers": [*saved["optimizers"], {}]}
    assert "2 optimizers were saved" in words_of(ValueError, lambda: own.load_state_dict(more))
    other = saved["outer"]["sieve"]
    assert "was saved without local steps" in words_of(
        ValueError, lambda: own.load_state_dict(other)
    )


def all_of_it(tmp):
    as_without_ddp()
    ended_no_sync()
    resumed(tmp)


def test_a_ddp_model_that_somebody_else_has_made_trains_locally(tmp_path):
    run_ranks(2, all_of_it, tmp_path)


def test_a_model_without_ddp_is_refused_in_words():
    with pytest.raises(gs.SieveError, match="Maker made no DDP model but Linear: use this"):
        ddp_model(nn.Linear(2, 2), "Maker", "this")


def test_a_sharded_model_is_sent_to_the_averager():
    class FSDPModule(nn.Linear):
        pass

    with pytest.raises(gs.SieveError, match=r"made no DDP model but FSDPModule: .* gs.Averager"):
        ddp_model(FSDPModule(2, 2), "Maker", "this")
