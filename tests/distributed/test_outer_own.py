"""What real ranks keep in their weights, where sums are pruned and topologies change."""

import torch
import torch.distributed as dist
from local_steps import average, build, train
from models import same_on_all_ranks, smaller_pieces
from ranks import run_ranks

import gradsieve as gs


def keep_their_own_while_bases_turn():
    smaller_pieces()
    net = build()
    outer = gs.OuterSync(
        net,
        every=3,
        threshold=gs.Sigma(4, of="balanced"),
        exchange="two-shot",
        rotation=64,
        min_numel=100,
    )
    train(net, outer, 24)
    names = {p.name for p in outer.state.sieve.parameters if p.inherited.flat is not None}
    assert names == {"one.weight", "two.weight", "three.weight"}
    assert names <= {*outer._weights.holding}
    assert not same_on_all_ranks(net)
    outer.finish()
    assert same_on_all_ranks(net)
    assert same_on_all_ranks(torch.nn.ParameterList(outer._weights.outer))


def test_ranks_of_a_two_shot_exchange_keep_their_own_while_bases_turn():
    run_ranks(4, keep_their_own_while_bases_turn)


class Books:
    """By hand: what this rank has learned, less the elements that it has sent."""

    def __init__(self, net, outer):
        self.net, self.outer = net, outer
        self.own, self.checked = {}, 0
        outer.state.observers.append(self)
        outer.on_step = self.check

    def see_gradients(self, step, parameters, gradients):
        for parameter, flat in zip(parameters, gradients, strict=True):
            if not parameter.whole:
                before = self.own.get(parameter.name, 0)
                self.own[parameter.name] = before + flat.view(parameter.shape).clone()

    def end_step(self, record):
        pass

    def check(self, record):
        residuals = dict(self.outer.state.residuals)
        weights, outer = dict(self.net.named_parameters()), dict(self.outer._weights.named)
        for name, own in self.own.items():
            own[residuals[name] == 0] = 0
            assert own.any(), name
            held = outer[name].detach() - weights[name].detach()
            torch.testing.assert_close(
                held, own, rtol=1e-4, atol=1e-6, msg=record.exchange.exchange
            )
            self.checked += 1


def keep_their_own_through_a_change():
    smaller_pieces()
    net = build()
    outer = gs.OuterSync(
        net,
        every=2,
        optimizer=average,
        threshold=gs.Density(0.1),
        values="float32",
        exchange="gather",
        min_numel=100,
    )
    books = Books(net, outer)
    optimizer = None
    for number, exchange in enumerate(["gather", "two-shot", "gather"]):
        outer.state.exchange = exchange
        optimizer = train(net, outer, 6, 6 * number, optimizer)
        assert outer.last.exchange.exchange == exchange
    assert books.checked == 3 * 9
    inherited = [p.inherited.flat for p in outer.state.sieve.parameters if not p.whole]
    assert all(part is not None for part in inherited)
    totals = torch.stack([part.norm() for part in inherited])
    dist.all_reduce(totals)
    assert bool((totals > 0).all())
    assert not same_on_all_ranks(net)
    outer.on_step = None
    outer.finish()
    assert same_on_all_ranks(net)


def test_ranks_keep_their_own_where_the_topology_changes_and_changes_back():
    run_ranks(4, keep_their_own_through_a_change)
