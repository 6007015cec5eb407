"""Local steps on real ranks: the same weights after each exchange, and nothing lost."""

import gc
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from models import Net, batch, on_every_rank, same_on_all_ranks, smaller_pieces, weights
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

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
        net(batch(step)).square().mean().backward()
        optimizer.step()
        outer.step()
    return optimizer


def mean_of_ranks(net):
    total = weights(net)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def exact(**options):
    return {"threshold": gs.Fixed(0.0), "values": "float32", "exchange": "gather"} | options


def meet_every_fourth_step():
    net = build(seed=dist.get_rank())
    outer = gs.OuterSync(net, every=4, optimizer=average, **exact())
    assert same_on_all_ranks(net), "ranks begin from the weights of rank 0"
    optimizer = train(net, outer, 3)
    assert not same_on_all_ranks(net)
    assert outer.last is None
    optimizer.zero_grad()
    net(batch(3)).square().mean().backward()
    optimizer.step()
    expected = mean_of_ranks(net)
    outer.step()
    assert same_on_all_ranks(net)
    torch.testing.assert_close(weights(net), expected)
    assert outer.last.step == outer.inner_steps == 4
    assert outer.last.exchange.exchange == "gather"
    # Every element, of float32, once in four steps.
    assert 8 < outer.last.bits_per_parameter < 9
    train(net, outer, 4, first=4, optimizer=optimizer)
    assert outer.last.step == 8


def test_ranks_meet_every_few_steps_and_have_the_same_weights_then():
    run_ranks(2, meet_every_fourth_step)


class Books:
    """Checks that what the outer weights move by is what the residuals and gradients give."""

    def __init__(self, outer):
        self.state = outer.state
        self.outer = outer
        self.gradients = {}
        outer.state.observers.append(self)
        outer.on_step = self.check
        self.checked = 0
        self.exact = self.state.values == "float32" or self.state.exchange == "dense"
        self.halved = self.state.exchange == "dense-fp16"
        self.remember()

    def remember(self):
        self.residuals = dict(self.state.residuals)
        self.owned = self.state.owned_residuals
        self.before = {n: w.detach().clone() for n, w in self.outer._weights.named}

    def see_gradients(self, step, parameters, gradients):
        for parameter, flat in zip(parameters, gradients, strict=True):
            self.gradients[parameter.name] = flat.view(parameter.shape).clone()

    def end_step(self, record):
        pass

    def check(self, record):
        ranks = dist.get_world_size()
        after, owned = dict(self.state.residuals), self.state.owned_residuals
        for name, outer in self.outer._weights.named:
            if name not in self.gradients:
                assert torch.equal(outer, self.before[name]), "of another fragment"
                continue
            total = self.gradients[name].clone()
            if name in after:
                total += self.residuals[name] - after[name]
                total -= ranks * (owned[name] - self.owned[name])
            dist.all_reduce(total)
            moved = ranks * (self.before[name] - outer.detach())
            # What travels whole is rounded to half precision, unless values are exact.
            rounds = not self.exact and (self.halved or name not in after)
            tolerance = 2e-2 if rounds else 1e-4
            torch.testing.assert_close(
                moved, total, atol=tolerance * float(total.abs().max()), rtol=0
            )
            self.checked += 1
        self.gradients.clear()
        self.remember()


def nothing_is_lost():
    smaller_pieces()
    for options in (
        {"exchange": "gather"},
        {"exchange": "gather", "values": "float32", "delay": 2},
        {"exchange": "gather", "fragments": 2, "delay": 1},
        {"exchange": "two-shot"},
        {"exchange": "two-shot", "fragments": 3},
        {"exchange": "dense"},
        {"exchange": "dense-fp16", "delay": 3},
    ):
        net = build()
        outer = gs.OuterSync(
            net, every=4, optimizer=average, threshold=gs.Sigma(1.0), min_numel=100, **options
        )
        books = Books(outer)
        train(net, outer, 20)
        outer.finish()
        assert same_on_all_ranks(net), options
        assert books.checked > 15, options


def test_nothing_is_lost_on_any_way():
    run_ranks(2, nothing_is_lost)


def switch_ways():
    smaller_pieces()
    net = build()
    outer = gs.OuterSync(
        net, every=2, optimizer=average, threshold=gs.Sigma(1.0), min_numel=100, exchange="gather"
    )
    Books(outer)
    optimizer = None
    for number, way in enumerate(["gather", "two-shot", "dense", "gather"]):
        outer.state.exchange = way
        optimizer = train(net, outer, 4, first=4 * number, optimizer=optimizer)
        assert outer.last.exchange.exchange == way
        assert same_on_all_ranks(net)


def test_the_way_may_change_between_exchanges():
    run_ranks(2, switch_ways)


def overlap():
    net = build()
    outer = gs.OuterSync(net, every=4, delay=2, optimizer=average, **exact())
    optimizer = train(net, outer, 4)
    assert outer.last is None
    assert outer.is_exchanging
    departed = mean_of_ranks(net)
    mine = weights(net)
    for step in (4, 5):
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        optimizer.step()
        if step == 4:
            outer.step()
    meanwhile = weights(net) - mine
    outer.step()
    torch.testing.assert_close(weights(net), departed + meanwhile)
    assert outer.last.step == 4
    outer.finish()
    assert same_on_all_ranks(net)


def test_inner_steps_go_on_while_an_exchange_is_under_way():
    run_ranks(2, overlap)


def nodes():
    """Two nodes of two ranks: DDP within, local steps between."""
    smaller_pieces()
    node = dist.get_rank() // 2
    # Both groups are made by all ranks.
    inside = [dist.new_group([0, 1]), dist.new_group([2, 3])][node]
    model = DDP(build(), process_group=inside)
    outer = gs.OuterSync(
        model,
        every=3,
        optimizer=average,
        threshold=gs.Sigma(1.0),
        exchange="hierarchical",
        node_size=2,
        min_numel=100,
    )
    train(model, outer, 2)
    mine = weights(model)
    both = [torch.empty_like(mine) for _ in range(4)]
    dist.all_gather(both, mine)
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[2], both[3])
    assert not torch.equal(both[0], both[2])
    train(model, outer, 10, first=2)
    assert same_on_all_ranks(model)
    assert outer.last.exchange.exchange == "hierarchical"
    with pytest.raises(gs.SieveError, match=r"over ranks \[0, 1, 2, 3\] in every step already"):
        gs.OuterSync(DDP(build()))


def test_ddp_within_nodes_and_local_steps_between():
    run_ranks(4, nodes)


class Normed(nn.Module):
    """Statistics, a tied, a frozen and a cached tensor."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 20)
        self.norm = nn.BatchNorm1d(20)
        self.tied = nn.Linear(20, 20)
        self.tied.weight = self.one.weight
        self.frozen = nn.Linear(20, 20).requires_grad_(False)
        self.register_buffer("mask", torch.full((3,), -torch.inf), persistent=False)

    def forward(self, x):
        return self.frozen(self.tied(self.norm(self.one(x)).relu()))


def statistics():
    for delay in (0, 2):
        torch.manual_seed(dist.get_rank())
        net = Normed()
        frozen = net.frozen.weight.clone()
        outer = gs.OuterSync(net, every=4, delay=delay, optimizer=average, **exact())
        shared_frozen = net.frozen.weight.clone()
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
    assert scaler.get_scale() < 2.0**8 or dist.get_rank() == 0
    assert same_on_all_ranks(net)
    assert weights(net).isfinite().all()


def test_amp_accumulation_and_schedulers():
    run_ranks(2, with_amp)


def diverge(options):
    net = build()
    outer = gs.OuterSync(net, every=2, optimizer=average, **options)
    optimizer = train(net, outer, 2)
    before = {name: w.detach().clone() for name, w in outer._weights.named}
    if dist.get_rank() == 1:
        with torch.no_grad():
            net.one.weight[0, 0] = torch.nan
    whose = "this" if dist.get_rank() == 1 else "another"
    with pytest.raises(gs.SieveError, match=f"weights of {whose} rank were not finite"):
        train(net, outer, 2, first=2, optimizer=optimizer)
    assert all(torch.equal(w, before[name]) for name, w in outer._weights.named)


@pytest.mark.parametrize("way", ["gather", "dense"])
def test_weights_that_are_not_finite_are_told_on_every_rank(way):
    run_ranks(2, diverge, exact(exchange=way))


def die(delay):
    net = build()
    outer = gs.OuterSync(
        net, every=4, delay=delay, threshold=gs.Sigma(1.0), exchange="gather", min_numel=100
    )
    optimizer = train(net, outer, 4 + delay)
    before = {name: w.detach().clone() for name, w in outer._weights.named}
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(gs.ExchangeError, match="rank 1 has died"):
        train(net, outer, 4, first=4 + delay, optimizer=optimizer)
    assert all(torch.equal(w, before[name]) for name, w in outer._weights.named)
    for call in (outer.step, outer.finish, outer.state_dict):
        with pytest.raises(gs.SieveError, match="load the last checkpoint"):
            call()


@pytest.mark.parametrize("delay", [0, 2])
def test_when_a_rank_dies_it_is_said_and_no_wrong_checkpoint_is_made(delay):
    run_ranks(2, die, delay)


def be_slow():
    net = build()
    outer = gs.OuterSync(net, every=3, **exact())
    optimizer = train(net, outer, 3)
    for step in range(3, 6):
        if dist.get_rank() == 1 and step == 4:
            time.sleep(0.5)
        train(net, outer, 1, first=step, optimizer=optimizer)
    return outer.last


def test_the_record_says_who_was_slow_and_for_how_long_others_waited():
    records = run_ranks(3, be_slow)
    assert [record.slowest_rank for record in records] == [1, 1, 1]
    assert records[0].waited_seconds > 0.4
    assert records[2].waited_seconds > 0.4
    assert records[1].waited_seconds < records[0].waited_seconds / 2
    assert records[0].exposed_seconds > 0.4


RATE = 2e6
"""Bits a second."""


def keep_to_a_rate(every):
    net = build(lambda: nn.Linear(20, 4000))
    budget = gs.Budget(bits_per_second=RATE)
    outer = gs.OuterSync(net, every=every, threshold=budget, exchange="gather")
    optimizer, start, sent = None, 0.0, 0
    for step in range(300):
        if step == 150:
            start, sent = time.perf_counter(), outer.state.totals.frame_bytes
        optimizer = train(net, outer, 1, first=step, optimizer=optimizer)
        time.sleep(0.002)
    bits = 8 * (outer.state.totals.frame_bytes - sent)
    return bits / (time.perf_counter() - start), outer.every


def test_a_budget_of_bits_a_second_is_kept():
    for rate, every in run_ranks(2, keep_to_a_rate, 10):
        assert 0.4 * RATE < rate < 2 * RATE
        assert every == 10


def test_where_bits_are_scarce_ranks_meet_less_often():
    (rate, every), (_, other) = run_ranks(2, keep_to_a_rate, (2, 20))
    assert rate < 2 * RATE
    assert 4 < every == other <= 20


def disagree():
    with pytest.raises(
        gs.SieveError, match=r"rank 0 has every=\[2, 2\], rank 1 has every=\[3, 3\]"
    ):
        gs.OuterSync(build(), every=2 + dist.get_rank())
    with pytest.raises(gs.SieveError, match=r"different settings: .* has min_numel=5"):
        gs.OuterSync(build(), min_numel=5 + dist.get_rank())
    with pytest.raises(gs.SieveError, match="different models"):
        gs.OuterSync(nn.Linear(20, 40 + dist.get_rank()))
    assert on_every_rank(True)


def test_ranks_that_differ_are_told_so_when_they_begin():
    run_ranks(2, disagree)


def one_rank():
    net = build()
    outer = gs.OuterSync(net, every=2, optimizer=average, **exact())
    train(net, outer, 3)
    mine = weights(net)
    outer.finish()
    torch.testing.assert_close(weights(net), mine)
    for arguments, error, words in (
        ({"model": "net"}, TypeError, "torch.nn.Module, got str"),
        ({"offload": "disk"}, ValueError, 'offload must be "cpu" or None'),
        ({"every": (2, 9), "threshold": gs.Sigma(1.0)}, ValueError, "follows a Budget"),
        ({"every": 0}, ValueError, "every must be 1 or more"),
        ({"model": nn.ReLU()}, ValueError, "no parameters"),
        ({"model": build().double()}, gs.SieveError, "one.weight is torch.float64"),
        ({"fragments": 7}, ValueError, "7 fragments of a model of 6 parameters"),
    ):
        with pytest.raises(error, match=words):
            gs.OuterSync(**{"model": build()} | arguments)


def test_one_rank_alone_and_what_is_refused():
    run_ranks(1, one_rank)


def memory(delay):
    """Bytes a parameter between exchanges, and while one is under way."""
    net = build(lambda: nn.Linear(1000, 400))
    numel = sum(p.numel() for p in net.parameters())
    outer = gs.OuterSync(net, every=2, delay=delay, threshold=gs.Sigma(2.0), exchange="gather")
    optimizer = train_wide(net, outer, 6 + delay)
    theirs = {t.data_ptr() for p in net.parameters() for t in (p, p.grad) if t is not None}
    between = size_of_tensors(theirs) / numel
    train_wide(net, outer, 2 - delay, optimizer)
    return between, size_of_tensors(theirs) / numel


def size_of_tensors(besides):
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.numel() >= 1000 * 400:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(size for pointer, size in storages.items() if pointer not in besides)


def train_wide(net, outer, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        net(batch(step, features=1000)).square().mean().backward()
        optimizer.step()
        outer.step()
    return optimizer


@pytest.mark.parametrize(("delay", "under_way"), [(0, 12), (1, 20)])
def test_memory_is_twelve_bytes_a_parameter_and_more_under_way(delay, under_way):
    for between, meanwhile in run_ranks(2, memory, delay):
        assert between == pytest.approx(12, rel=0.01)
        assert meanwhile == pytest.approx(under_way, rel=0.01)


def leave_everything_to_it(delay):
    net = build(lambda: nn.Linear(20, 4000))
    outer = gs.OuterSync(net, every=2, delay=delay)
    train(net, outer, 40)
    outer.finish()
    assert same_on_all_ranks(net)
    assert outer.state.totals.steps == 20
    assert outer.state.totals.exchanges["dense"] >= 5


@pytest.mark.parametrize("delay", [0, 1])
def test_everything_may_be_left_to_it(delay):
    run_ranks(2, leave_everything_to_it, delay)


def send_no_more_than_asked():
    net = build(lambda: nn.Linear(20, 4000))
    outer = gs.OuterSync(net, every=2, threshold=gs.Budget(bits_per_second=RATE))
    train(net, outer, 40)
    assert set(outer.state.totals.exchanges) <= {"gather", "two-shot"}


def test_a_budget_in_bits_is_never_dense():
    run_ranks(2, send_no_more_than_asked)


def spoil_statistics():
    net = Normed()
    outer = gs.OuterSync(net, every=2, **exact())
    if dist.get_rank() == 1:
        net.norm.running_var.fill_(torch.nan)
    net.norm.eval()
    net.norm.track_running_stats = False
    with pytest.raises(gs.SieveError, match="statistics that the model keeps"):
        train(net, outer, 2)


def test_statistics_that_are_not_finite_are_told_on_every_rank():
    run_ranks(2, spoil_statistics)


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


def record_into(directory):
    net = build()
    outer = gs.OuterSync(net, every=2, threshold=gs.Sigma(1.0), exchange="gather", min_numel=100)
    recorder = gs.Recorder(outer.state, net, directory, histograms_every=2, tensorboard=False)
    optimizer = None
    for step in range(8):
        optimizer = train(net, outer, 1, first=step, optimizer=optimizer)
        recorder.log(loss=1.0)
    recorder.close()


def test_a_recorder_takes_the_pseudo_gradients(tmp_path):
    from gradsieve.report.source import read_source

    run_ranks(2, record_into, str(tmp_path))
    (run,) = read_source(tmp_path).runs
    assert [line["step"] for line in run.steps] == [0, 1, 2, 3]
    assert {"weight", "gradient", "residual"} <= run.counted[0].histograms.keys()
