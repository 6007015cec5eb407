"""Local steps on real ranks: the same weights after each exchange, and nothing lost."""

import time

import pytest
import torch
import torch.distributed as dist
from local_steps import Normed, average, build, exact, mean_of_ranks, train
from models import batch, same_on_all_ranks, smaller_pieces, weights
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs


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


def make_from_rank_zero():
    seen = []

    def remembering(weights):
        weights = list(weights)
        seen.extend(weight.detach().clone() for weight in weights)
        return average(weights)

    net = build(seed=dist.get_rank())
    gs.OuterSync(net, every=2, optimizer=remembering, **exact())
    assert torch.equal(torch.cat([weight.flatten() for weight in seen]), weights(net))
    assert same_on_all_ranks(net)


def test_the_outer_optimizer_is_made_from_the_weights_that_all_ranks_have():
    run_ranks(2, make_from_rank_zero)


def finish_with_fragments():
    net = build()
    outer = gs.OuterSync(net, every=6, fragments=2, min_numel=2048, **exact())
    bits = []
    outer.on_step = lambda record: bits.append(record.bits_per_parameter)
    train(net, outer, 2)
    outer.finish()
    # All elements, of float32, in two steps.
    assert len(bits) == 2
    assert 16 < sum(bits) < 18


def test_fragments_that_finish_together_share_their_steps():
    run_ranks(2, finish_with_fragments)


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
    from gradsieve.lab.report.source import read_source

    run_ranks(2, record_into, str(tmp_path))
    (run,) = read_source(tmp_path).runs
    assert [line["step"] for line in run.steps] == [0, 1, 2, 3]
    assert {"weight", "gradient", "residual"} <= run.counted[0].histograms.keys()
