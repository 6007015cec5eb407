"""What a rank keeps of its own gradients, compared with a bookkeeping by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from played_ranks import RANKS, TWO_SHOT, Ranks, RanksOfWeights, gradients_of

import gradsieve as gs
from gradsieve.codec import decode_frame
from gradsieve.topology import DENSE, GATHER

TOPOLOGIES = st.sampled_from([GATHER, TWO_SHOT, TWO_SHOT, DENSE])


@pytest.fixture(scope="module", autouse=True)
def on_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Ledger:
    """What each rank has learned and not sent, by parameter, in the coordinates of the gradient."""

    def __init__(self, ranks):
        self.ranks = ranks
        kept = [p for p in ranks.sieves[0].parameters if not p.whole]
        self.own = [{p.name: torch.zeros(p.numel) for p in kept} for _ in range(RANKS)]

    def send(self, topology, gradients):
        """Let all ranks make their frames, and strike out what is in them."""
        exchanges = self.ranks.send(topology, gradients)
        frames = iter(self.ranks.frames)
        for own, plan, gradient in zip(self.own, self.ranks.plans, gradients, strict=True):
            sections = {
                piece: section
                for part in plan.own_parts
                for piece, section in zip(part, decode_frame(next(frames)).sections, strict=True)
            }
            for number, parameter in enumerate(plan.pruned):
                total = own[parameter.name] + plan.layout.take(gradient, number)
                own[parameter.name] = struck_out(parameter, total, plan.pieces[number], sections)
        return exchanges

    def step(self, topology, gradients):
        if topology is DENSE:
            average = self.ranks.all_reduce(gradients)
            for own in self.own:
                for total in own.values():
                    total.zero_()
        else:
            average = self.ranks.exchange(self.send(topology, gradients))
        self.ranks.commit()
        return average

    def check(self):
        for sieve, own in zip(self.ranks.sieves, self.own, strict=True):
            for parameter in sieve.parameters:
                if not parameter.whole:
                    found = parameter.unsent()
                    found = torch.zeros(parameter.shape) if found is None else found
                    expected = own[parameter.name].view(parameter.shape)
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)

    def inherited(self):
        """How much all ranks have inherited."""
        parts = [p.inherited.flat for sieve in self.ranks.sieves for p in sieve.parameters]
        return sum(float(part.norm()) for part in parts if part is not None)


def struck_out(parameter, total, pieces, sections):
    if parameter.rotation is not None:
        total = parameter.rotation.coefficients(total)
    for piece in pieces:
        indices, _ = sections[piece].survivors()
        total[piece.start : piece.stop][torch.from_numpy(indices).long()] = 0
    if parameter.rotation is not None:
        parameter.rotation.restore(total)
    return total


def ranks_of(**options):
    options = {"values": "float32", "rotation": 16} | options
    return Ledger(RanksOfWeights(**options))


@pytest.mark.parametrize("policy", [gs.Density(0.1), gs.Sigma(1.0, of="balanced")], ids=str)
def test_what_a_rank_keeps_of_its_own_goes_on_while_bases_turn_and_sums_are_pruned(policy):
    ledger = ranks_of(threshold=policy)
    given = wanted = 0.0
    # Bases turn after the first, third, seventh and tenth step.
    for step in range(11):
        gradients = gradients_of(step)
        given = given + RANKS * ledger.step(TWO_SHOT, gradients).double()
        wanted = wanted + torch.stack(gradients).double().sum(dim=0)
        torch.testing.assert_close(given + ledger.ranks.owed(), wanted, rtol=2e-5, atol=2e-5)
        ledger.check()
        assert ledger.inherited() > 0
    assert all(total.any() for own in ledger.own for total in own.values())


@settings(max_examples=15, deadline=None)
@given(st.lists(TOPOLOGIES, min_size=2, max_size=6), st.sampled_from([0, 16]))
def test_a_rank_keeps_its_own_whatever_the_topologies(topologies, rotation):
    ledger = ranks_of(rotation=rotation)
    for step, topology in enumerate(topologies):
        ledger.step(topology, gradients_of(step))
        ledger.check()


def test_sums_are_inherited_once_another_topology_follows():
    ledger = ranks_of(rotation=0)
    for step, topology in enumerate([GATHER, TWO_SHOT, TWO_SHOT]):
        ledger.step(topology, gradients_of(step))
        assert not ledger.inherited()
    ledger.step(GATHER, gradients_of(3))
    assert ledger.inherited()
    ledger.check()
    ledger.step(DENSE, gradients_of(4))
    assert not ledger.inherited()


def test_all_ranks_inherit_at_the_same_time():
    """Also those that prune no sums of a parameter: mates of DDP must decide alike."""
    ledger = ranks_of()
    topologies = [GATHER, TWO_SHOT, GATHER, DENSE, TWO_SHOT, TWO_SHOT, GATHER]
    for step, topology in enumerate(topologies):
        ledger.step(topology, gradients_of(step))
        for of_ranks in zip(*(sieve.parameters for sieve in ledger.ranks.sieves), strict=True):
            has_inherited = {parameter.inherited.flat is not None for parameter in of_ranks}
            assert has_inherited == {not of_ranks[0].whole and step in (2, 6)}, step


@pytest.mark.parametrize("topology", [GATHER, TWO_SHOT], ids=lambda found: found.name)
@pytest.mark.parametrize("leave", ["put_back", "skip"])
def test_a_step_that_failed_leaves_apart_what_others_have_learned(topology, leave):
    ledger = ranks_of()
    for step in range(4):
        ledger.step(TWO_SHOT, gradients_of(step))
    before = [{name: total.clone() for name, total in own.items()} for own in ledger.own]
    gradients = gradients_of(4)
    ledger.ranks.exchange(ledger.send(topology, gradients))
    getattr(ledger.ranks, leave)()
    plan = ledger.ranks.plans[0]
    for own, kept, gradient in zip(ledger.own, before, gradients, strict=True):
        for number, parameter in enumerate(plan.pruned):
            own[parameter.name] = kept[parameter.name] + plan.layout.take(gradient, number)
    ledger.check()
    assert ledger.inherited()


def test_a_dense_step_that_failed_changes_nothing():
    ledger = ranks_of()
    # Bases turn after the third, so no sums are left to take over.
    for step in range(3):
        ledger.step(TWO_SHOT, gradients_of(step))
    inherited = ledger.inherited()
    ledger.ranks.all_reduce(gradients_of(4))
    assert not ledger.inherited()
    ledger.ranks.put_back()
    assert ledger.inherited() == inherited > 0
    ledger.check()


def test_what_is_not_finite_stays_in_both_parts():
    ledger = ranks_of(rotation=0)
    for step, topology in enumerate([TWO_SHOT, GATHER]):
        ledger.step(topology, gradients_of(step))
    gradients = gradients_of(2)
    gradients[1][7] = torch.nan
    ledger.ranks.exchange(ledger.ranks.send(GATHER, gradients))
    ledger.ranks.skip()
    for sieve in ledger.ranks.sieves:
        for parameter in sieve.parameters:
            if not parameter.whole:
                assert parameter.inherited.flat.isfinite().all()
                assert parameter.unsent().isfinite().all()


def test_own_and_inherited_parts_decay_alike():
    ledger = ranks_of()
    for step in range(4):
        ledger.step(TWO_SHOT, gradients_of(step))
    before = ledger.inherited()
    for sieve, plan in zip(ledger.ranks.sieves, ledger.ranks.plans, strict=True):
        sieve.decay(plan, 0.5)
    for own in ledger.own:
        for total in own.values():
            total.mul_(0.5)
    ledger.check()
    assert ledger.inherited() == pytest.approx(before / 2)


@pytest.mark.parametrize(
    ("make", "options"),
    [(Ranks, {}), (RanksOfWeights, {"error_feedback": False})],
    ids=["hook", "no error feedback"],
)
def test_where_nobody_asks_nothing_is_kept_apart(make, options):
    ranks = make(rotation=16, **options)
    for step, topology in enumerate([TWO_SHOT, TWO_SHOT, GATHER]):
        ranks.step(topology, gradients_of(step))
    for sieve in ranks.sieves:
        for parameter in sieve.parameters:
            assert parameter.inherited.flat is None
            assert parameter.unsent() is None
