"""Local steps on real ranks: the same weights after each exchange, and nothing lost."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from local_steps import average, build, exact, mean_of_ranks, train
from models import batch, same_on_all_ranks, smaller_pieces, weights
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.exchange import attendance


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
        self.exact = self.state.config.values == "float32" or self.state.exchange == "dense"
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


def test_nothing_is_lost_with_any_topology():
    run_ranks(2, nothing_is_lost)


def switch_topologies():
    smaller_pieces()
    net = build()
    outer = gs.OuterSync(
        net, every=2, optimizer=average, threshold=gs.Sigma(1.0), min_numel=100, exchange="gather"
    )
    Books(outer)
    optimizer = None
    for number, topology in enumerate(["gather", "two-shot", "dense", "gather"]):
        outer.state.exchange = topology
        optimizer = train(net, outer, 4, first=4 * number, optimizer=optimizer)
        assert outer.last.exchange.exchange == topology
    outer.finish()
    assert same_on_all_ranks(net)


def keep_the_rest():
    """Ranks differ by what they have not sent."""
    smaller_pieces()
    for options, differs in (
        ({"exchange": "gather"}, True),
        ({"exchange": "two-shot"}, True),
        ({"exchange": "two-shot", "rotation": 16}, True),
        ({"exchange": "gather", "error_feedback": False}, False),
        ({"exchange": "dense"}, False),
    ):
        net = build()
        outer = gs.OuterSync(net, every=2, threshold=gs.Sigma(2.0), min_numel=100, **options)
        train(net, outer, 8)
        assert same_on_all_ranks(net) != differs, options
        outer.finish()
        assert same_on_all_ranks(net), options


def test_a_rank_keeps_in_its_weights_what_is_its_own():
    run_ranks(2, keep_the_rest)


def test_the_topology_may_change_between_exchanges():
    run_ranks(2, switch_topologies)


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
    # What a node has kept together lies on single ranks of it from now on, and so do sums.
    for number, exchange in enumerate(["gather", "two-shot", "gather", "dense", "gather"]):
        outer.state.exchange = exchange
        train(model, outer, 6, first=12 + 6 * number)
        dist.all_gather(both, weights(model))
        assert torch.equal(both[0], both[1]), exchange
        assert torch.equal(both[2], both[3]), exchange
    assert not torch.equal(both[0], both[2]), "they keep their own again"
    with pytest.raises(gs.SieveError, match=r"over ranks \[0, 1, 2, 3\] in every step already"):
        gs.OuterSync(DDP(build()))


def test_ddp_within_nodes_and_local_steps_between():
    run_ranks(4, nodes)


def one_group_for_each_place():
    """Two nodes of two ranks, each of which exchanges with the same rank of the other node."""
    attendance.PATIENCE = 0.1
    node, place = divmod(dist.get_rank(), 2)
    brief = timedelta(seconds=1)
    inside = [dist.new_group(ranks, timeout=brief) for ranks in ([0, 1], [2, 3])][node]
    across = [dist.new_group(ranks, timeout=brief) for ranks in ([0, 2], [1, 3])][place]
    model = DDP(build(), process_group=inside)
    for options in ({}, {"threshold": gs.Budget(bytes_per_step=9e3)}, exact(exchange="auto")):
        with pytest.raises(
            gs.SieveError, match=r"weights would diverge\. Leave process_group away"
        ):
            gs.OuterSync(model, process_group=across, **options)
    options = {"every": 2, "threshold": gs.Sigma(1.0), "exchange": "gather", "min_numel": 100}
    outer = gs.OuterSync(model, process_group=across, **options)
    train(model, outer, 5)
    outer.finish()
    assert same_on_all_ranks(model)
    outer.state.exchange = "auto"
    with pytest.raises(gs.SieveError, match="decides by time"):
        outer.step()
    if place:
        dist.barrier()
        return
    with pytest.raises(gs.ExchangeError, match=rf"rank {2 * node + 1} has made no OuterSync"):
        gs.OuterSync(model, process_group=across, **options)
    dist.barrier()


def test_ranks_of_a_node_that_exchange_in_groups_of_their_own_stay_alike():
    run_ranks(4, one_group_for_each_place)


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
