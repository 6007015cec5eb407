"""Ranks in one process, by the public methods of their sieves alone, without a process group."""

import copy

import pytest
import torch
import torch.distributed as dist
from played_ranks import RANKS, TWO_SHOT, Ranks, RanksOfWeights, Scaler, gradients_of
from torch import nn

import gradsieve as gs
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.config import SieveConfig
from gradsieve.topology import DENSE, GATHER

BOTH = pytest.mark.parametrize("topology", [GATHER, TWO_SHOT], ids=lambda found: found.name)
POLICIES = [gs.Density(0.05), gs.Sigma(1.5), gs.Sigma(1.0, of="balanced"), gs.UnsentMean(4.0)]


@pytest.fixture(scope="module", autouse=True)
def without_a_process_group():
    """On one thread: two that wait for each other take long where another process has a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert not dist.is_initialized()
    yield
    assert not dist.is_initialized()
    torch.set_num_threads(before)


def require_nothing_is_lost(ranks, topologies, scaler=None, tolerance=1e-6):
    given = wanted = 0.0
    shares = []
    for step, topology in enumerate(topologies):
        scale = 1.0
        if scaler is not None:
            scale = scaler.scale = 2.0 ** (step - 2)
        gradients = gradients_of(step, scale)
        average = ranks.step(topology, gradients)
        given = given + RANKS * average.double() / scale
        wanted = wanted + torch.stack(gradients).double().sum(dim=0) / scale
        owed = ranks.owed()
        torch.testing.assert_close(given + owed, wanted, rtol=tolerance, atol=tolerance)
        if topology is DENSE:
            assert not owed.any()
        else:
            clock = ranks.sieves[0].step.clock
            shares.append(clock.sent_elements / clock.elements)
            assert owed.any()
    assert [sieve.step_number for sieve in ranks.sieves] == [len(topologies)] * RANKS
    assert max(shares) < 0.5
    assert min(shares) > 0.004, "at least what travels whole"


@BOTH
@pytest.mark.parametrize("values", ["float32", "levels", "bfloat16"])
def test_nothing_is_lost(topology, values):
    for policy in POLICIES:
        require_nothing_is_lost(Ranks(threshold=policy, values=values), [topology] * 4)


@pytest.mark.parametrize("values", ["float32", "levels"])
def test_nothing_is_lost_when_the_topology_changes(values):
    topologies = [GATHER, TWO_SHOT, TWO_SHOT, DENSE, TWO_SHOT, GATHER, GATHER, DENSE, GATHER]
    require_nothing_is_lost(Ranks(values=values), topologies)


@BOTH
def test_nothing_is_lost_when_the_scale_of_the_loss_changes(topology):
    scaler = Scaler()
    require_nothing_is_lost(Ranks(scaler=scaler), [topology] * 6, scaler)


@BOTH
def test_nothing_is_lost_in_bases_that_turn(topology):
    ranks = Ranks(rotation=16)
    first = [p.rotation.fingerprint for p in ranks.sieves[0].parameters if p.rotation is not None]
    require_nothing_is_lost(ranks, [topology] * 12, tolerance=2e-5)
    for sieve in ranks.sieves:
        now = [p.rotation.fingerprint for p in sieve.parameters if p.rotation is not None]
        assert len(now) == 2
        assert all(a != b for a, b in zip(first, now, strict=True))


@BOTH
def test_without_error_feedback_nothing_is_kept(topology):
    ranks = Ranks(error_feedback=False)
    for step in range(2):
        ranks.step(topology, gradients_of(step))
        assert not ranks.owed().any()
    ranks.send(topology, gradients_of(2))
    ranks.put_back()
    assert not ranks.owed().any()


@BOTH
@pytest.mark.parametrize("values", ["float32", "levels"])
def test_put_back_gives_back_all_that_was_selected(topology, values):
    ranks = Ranks(values=values)
    for step in range(2):
        ranks.step(topology, gradients_of(step))
    before = [ranks.kept(rank) for rank in range(RANKS)]
    gradients = gradients_of(2)
    ranks.send(topology, gradients)
    ranks.put_back()
    for rank, gradient in enumerate(gradients):
        torch.testing.assert_close(
            ranks.kept(rank), before[rank] + gradient.double(), rtol=1e-6, atol=1e-6
        )


def require_all_is_kept(ranks, topology, leave):
    """A step that has been exchanged, and then left by one of the ways back."""
    ranks.step(topology, gradients_of(0))
    owed, gradients = ranks.owed(), gradients_of(1)
    ranks.exchange(ranks.send(topology, gradients))
    leave()
    wanted = owed + torch.stack(gradients).double().sum(dim=0)
    torch.testing.assert_close(ranks.owed(), wanted, rtol=1e-6, atol=1e-6)


@BOTH
def test_put_back_gives_back_what_the_exchange_has_pruned_of_sums(topology):
    ranks = Ranks()
    require_all_is_kept(ranks, topology, ranks.put_back)


@BOTH
def test_a_step_that_was_cut_short_is_put_back_by_the_next(topology):
    ranks = Ranks()
    ranks.send(topology, gradients_of(0))
    average = ranks.step(topology, gradients_of(1))
    wanted = torch.stack(gradients_of(0) + gradients_of(1)).double().sum(dim=0)
    torch.testing.assert_close(
        ranks.owed() + RANKS * average.double(), wanted, rtol=1e-6, atol=1e-6
    )
    assert ranks.sieves[0].step_number == 1


def test_a_dense_step_that_failed_is_put_back():
    ranks = Ranks()
    ranks.step(TWO_SHOT, gradients_of(0))
    owed = ranks.owed()
    ranks.all_reduce(gradients_of(1))
    assert not ranks.owed().any()
    ranks.put_back()
    torch.testing.assert_close(ranks.owed(), owed, rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_skip_leaves_nothing_of_a_step(topology, policy):
    ranks = Ranks(threshold=policy, rotation=16)
    for step in range(2):
        ranks.step(topology, gradients_of(step))
    before = ranks.checksums()
    gradients = gradients_of(2)
    gradients[1][7] = torch.nan
    ranks.exchange(ranks.send(topology, gradients))
    assert [sieve.step.clock.nonfinite for sieve in ranks.sieves] == [0, 1, 0]
    assert all(sieve.step.clock.nonfinite_anywhere for sieve in ranks.sieves)
    ranks.skip()
    assert ranks.checksums() == before
    ranks.commit()
    # The number of the step alone is another.
    assert [sieve.step_number for sieve in ranks.sieves] == [3] * RANKS
    for sieve in ranks.sieves:
        sieve.step_number = 2
    assert ranks.checksums() == before


@BOTH
def test_what_was_sent_of_weights_is_kept_where_a_step_is_skipped(topology):
    ranks = RanksOfWeights()
    require_all_is_kept(ranks, topology, ranks.skip)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        *({"threshold": policy} for policy in POLICIES),
        {"threshold": gs.Budget(bytes_per_step=1e4)},
        {"rotation": 16, "values": "float32"},
        {"ramp_steps": 8},
        {"error_feedback": False},
        {"min_numel": None},
    ],
    ids=str,
)
def test_what_is_loaded_goes_on_with_the_same_bits(topology, options):
    ranks = Ranks(**options)
    for step in range(4):
        ranks.step(topology, gradients_of(step))
    saved = copy.deepcopy([sieve.save() for sieve in ranks.sieves])
    loaded = Ranks(**options)
    assert loaded.checksums() != ranks.checksums()
    for sieve, state in zip(loaded.sieves, saved, strict=True):
        sieve.require_fit(state)
        sieve.load(state)
    assert loaded.checksums() == ranks.checksums()
    for step in range(4, 8):
        gradients = gradients_of(step)
        assert torch.equal(loaded.step(topology, gradients), ranks.step(topology, gradients))
    assert loaded.checksums() == ranks.checksums()


def test_a_state_that_does_not_fit_is_told_before_it_is_loaded():
    ranks = Ranks()
    ranks.step(GATHER, gradients_of(0))
    saved = ranks.sieves[0].save()
    other = Ranks(values="float32")
    with pytest.raises(ValueError, match="values was levels and is float32 here"):
        other.sieves[0].require_fit(saved)
    with pytest.raises(ValueError, match="scaler was none and is given here"):
        Ranks(scaler=Scaler()).sieves[0].require_fit(saved)
    fresh = Ranks()
    with torch.no_grad():
        fresh.model[1].bias[3] += 1
    with pytest.raises(ValueError, match=r"1\.bias"):
        fresh.sieves[0].require_fit(saved)
    # As the weights will be.
    fresh.sieves[0].require_fit(saved, weights=saved["weights"][0])


def test_steps_before_the_first_that_prunes_are_plain():
    ranks = Ranks(start_step=2)
    for number in range(2):
        for sieve in ranks.sieves:
            sieve.begin_step()
            assert sieve.is_before_start
            sieve.commit()
            assert sieve.step_number == number + 1
    assert not ranks.owed().any()
    ranks.step(GATHER, gradients_of(0))
    assert not any(sieve.is_before_start for sieve in ranks.sieves)
    assert ranks.owed().any()


def test_steps_are_plain_until_the_parameters_are_known():
    sieve = RankSieve(SieveConfig(threshold=gs.Density(0.05), min_numel=1000))
    first, last = nn.Linear(100, 20), nn.Linear(20, 10)
    sieve.begin_step()
    assert sieve.parameters.states_of(list(last.parameters()), last=False) == []
    assert sieve.is_before_start
    assert sieve.parameters.states_of(list(first.parameters()), last=True) == []
    assert sieve.is_before_start
    sieve.commit()
    assert not sieve.is_before_start
    assert [parameter.name for parameter in sieve.parameters] == ["0", "1", "2", "3"]


@BOTH
def test_the_norm_of_what_is_kept(topology):
    ranks = Ranks()
    for step in range(2):
        ranks.step(topology, gradients_of(step))
    for sieve in ranks.sieves:
        kept = [p.unrotated_residual().flatten() for p in sieve.parameters]
        assert sieve.residual_norm() == pytest.approx(float(torch.cat(kept).norm()), rel=1e-5)


def test_what_is_kept_can_decay():
    ranks = Ranks()
    ranks.step(TWO_SHOT, gradients_of(0))
    before = ranks.owed()
    for sieve, plan in zip(ranks.sieves, ranks.plans, strict=True):
        sieve.decay(plan, 0.5)
    torch.testing.assert_close(ranks.owed(), before / 2)


@BOTH
def test_coefficients_are_ordered_by_the_size_that_was_learned(topology):
    ranks = Ranks(rotation=16, threshold=gs.Density(0.3))
    kinds = []
    for step in range(3):
        ranks.step(topology, gradients_of(step))
        reports = [gs.inspect(frame) for frame in ranks.frames]
        kinds.append({section.kind for report in reports for section in report.sections})
    assert "sized levels" not in kinds[0]
    assert "sized levels" in kinds[1] & kinds[2]
