"""Local steps of models and training loops as users have them."""

import torch
import torch.distributed as dist
from local_steps import Normed, average, build, exact, train
from models import batch, same_on_all_ranks, weights
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs


def statistics():
    for delay in (0, 2):
        torch.manual_seed(dist.get_rank())
        net = Normed()
        frozen = net.frozen.weight.clone()
        outer = gs.OuterSync(net, every=4, delay=delay, optimizer=average, **exact())
        shared_frozen = net.frozen.weight.clone()
        orders = [torch.empty_like(net.order) for _ in range(2)]
        dist.all_gather(orders, net.order)
        assert torch.equal(*orders), "integers too are rank 0's at first"
        assert dist.get_rank() or torch.equal(frozen, shared_frozen)
        train(net, outer, 3)
        ours = net.norm.running_mean.clone()
        gathered = [torch.empty_like(ours) for _ in range(2)]
        dist.all_gather(gathered, ours)
        assert not torch.equal(*gathered)
        optimizer = train(net, outer, 1, first=3)
        if delay:
            train(net, outer, delay, first=4, optimizer=optimizer)
        ours = net.norm.running_mean.clone()
        dist.all_gather(gathered, ours)
        assert torch.equal(*gathered)
        assert net.norm.num_batches_tracked == 4 + delay
        assert net.one.weight is net.tied.weight
        assert torch.equal(net.frozen.weight, shared_frozen)
        assert torch.isinf(net.mask).all()
        assert net.frozen.weight.grad is None


def test_statistics_are_averaged_and_frozen_and_tied_parameters_stay_what_they_are():
    run_ranks(2, statistics)


class Tabled(nn.Module):
    """With numbers that are looked up, a part of its state."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 20)
        self.register_buffer("frequencies", 10000 ** -torch.linspace(0, 1, 33))

    def forward(self, x):
        return self.one(x)


def look_up():
    net = build(Tabled)
    before = net.frequencies.clone()
    outer = gs.OuterSync(net, every=1, **exact())
    train(net, outer, 20)
    assert torch.equal(net.frequencies, before)


def test_buffers_that_no_rank_changes_stay_what_they_are():
    run_ranks(3, look_up)


def with_amp():
    net = build()
    outer = gs.OuterSync(net, every=2, threshold=gs.Sigma(1.0), exchange="gather", min_numel=100)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(8):
        optimizer.zero_grad()
        for part in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = net(batch(2 * step + part)).square().mean() / 2
            if step == 3 and dist.get_rank() == 1:
                loss = loss * torch.inf
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        outer.step()
    outer.finish()
    assert scaler.get_scale() < 2.0**8 or dist.get_rank() == 0
    assert same_on_all_ranks(net)
    assert weights(net).isfinite().all()


def test_amp_accumulation_and_schedulers():
    run_ranks(2, with_amp)


def begin_together():
    model = DDP(build())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        with model.no_sync():
            model(batch(2 * step)).square().mean().backward()
        model(batch(2 * step + 1)).square().mean().backward()
        optimizer.step()
    together = weights(model)
    assert same_on_all_ranks(model)
    outer = gs.OuterSync(model.module, every=3, offload="cpu", **exact())
    assert torch.equal(weights(model), together)
    train(model.module, outer, 6, first=8, optimizer=optimizer)
    assert same_on_all_ranks(model)


def test_local_steps_after_synchronous_ones_with_no_sync():
    run_ranks(2, begin_together)
