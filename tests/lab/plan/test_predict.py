"""The model of a step: what must hold whatever the numbers are."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradsieve.exchange.cost import LinkCost
from gradsieve.lab.plan.bare_step import BareStep, BucketSize, buckets_of, like_usual
from gradsieve.lab.plan.machine import Machine, Measured
from gradsieve.lab.plan.predict import predict_dense, predict_frames
from gradsieve.lab.plan.rows import comparisons, described_link, plan_row

MACHINE = Machine(
    select=6e-10, section=1e-5, make=1e-8, read=5e-9, collective=5e-4, reduce=5e-10, halve=1e-9
)
TRAINING = BareStep(
    step=0.2,
    backward=0.12,
    wrapper=0.005,
    buckets=(BucketSize(300_000, 2), BucketSize(6_000_000, 3), BucketSize(4_000_000, 5)),
)
links = st.builds(LinkCost, latency=st.floats(1e-5, 0.1), rate=st.floats(1e5, 1e10))
ranks = st.integers(2, 4096)
ways = st.sampled_from(["gather", "two-shot"])


@given(links, ranks, ways, st.floats(0.01, 8))
def test_no_exchange_is_quicker_than_none(link, ranks, way, bits):
    least = TRAINING.step + TRAINING.wrapper
    assert predict_frames(TRAINING, MACHINE, link, ranks, way, bits) >= least
    assert predict_dense(TRAINING, MACHINE, link, ranks) >= least


@given(links, ranks, ways, st.floats(0.01, 8))
def test_more_bits_and_slower_links_take_no_less(link, ranks, way, bits):
    seconds = predict_frames(TRAINING, MACHINE, link, ranks, way, bits)
    assert predict_frames(TRAINING, MACHINE, link, ranks, way, 2 * bits) >= seconds - 1e-9
    slower = replace(link, rate=link.rate / 2)
    assert predict_frames(TRAINING, MACHINE, slower, ranks, way, bits) >= seconds - 1e-9
    assert predict_dense(TRAINING, MACHINE, slower, ranks) >= (
        predict_dense(TRAINING, MACHINE, link, ranks) - 1e-9
    )


def test_on_many_ranks_two_shots_are_quicker_and_on_two_one_is():
    link = LinkCost(1e-4, 12.5e6)
    for count, quicker, slower in ((2, "gather", "two-shot"), (64, "two-shot", "gather")):
        seconds = [
            predict_frames(TRAINING, MACHINE, link, count, way, 0.5) for way in (quicker, slower)
        ]
        assert seconds[0] < seconds[1]


def test_a_slow_link_is_waited_for_and_a_fast_one_is_hidden():
    slow = predict_dense(TRAINING, MACHINE, LinkCost(1e-4, 12.5e6), 2)
    assert slow == pytest.approx(0.2 + 10.3e6 * 4 / 12.5e6, rel=0.05)
    fast = predict_dense(TRAINING, MACHINE, LinkCost(1e-5, 1e12), 2)
    assert fast < 0.23


def test_buckets_are_those_that_ddp_makes():
    model = nn.Sequential(*(nn.Linear(700, 700) for _ in range(30)), nn.Linear(700, 3))
    numels = [parameter.numel() for parameter in model.parameters()]
    found, _ = torch.distributed._compute_bucket_assignment_by_size(
        list(model.parameters())[::-1], [2**20, 25 * 2**20]
    )
    made = buckets_of(numels)
    assert [bucket.parameters for bucket in made] == [len(bucket) for bucket in found]
    assert sum(bucket.elements for bucket in made) == sum(numels)


def test_a_model_of_which_only_the_size_is_known():
    training = like_usual(350e6, 0.3)
    elements = sum(bucket.elements for bucket in training.buckets)
    assert elements == pytest.approx(350e6, rel=0.01)
    row = plan_row("mine", training, MACHINE, "1gbit", 8, 0.25)
    assert row.seconds["dense"] > 2
    assert row.quickest == (min(row.seconds, key=row.seconds.get),)
    # A step of three seconds hides every way: all are named, in order.
    small = plan_row("small", like_usual(1e6, 3.0), MACHINE, "1gbit", 2, 0.25)
    assert small.quickest == tuple(sorted(small.seconds, key=small.seconds.get))
    with pytest.raises(ValueError, match="furlong"):
        plan_row("mine", training, MACHINE, "1furlong", 8, 0.25)


def test_the_words_of_a_link_are_understood():
    fast = described_link("2 ranks, 1 Gbit/s each way (tbf)", MACHINE)
    assert fast.rate == pytest.approx(119.6e6, rel=0.01)
    slow = described_link("2 ranks, 20 Mbit/s each way (tbf), 40 ms round trip", MACHINE)
    assert slow.rate == pytest.approx(2.39e6, rel=0.01)
    assert slow.latency == pytest.approx(0.04, rel=0.05)
    assert described_link("loopback, not shaped: no rate asked for", MACHINE).rate > 1e12


def test_rows_are_compared_at_the_speed_of_their_own_run():
    row = {
        "workload": "gpt",
        "link": "2 ranks, 1 Gbit/s each way (tbf)",
        "ranks": 2,
        "step_seconds": 0.4,
        "limit_seconds": 0.4,
        "bits_per_parameter": 0.2,
    }
    rows = [row | {"method": method} for method in ("sieve", "powersgd:4", "lock-step")]
    measured = Measured(MACHINE, {"gpt": TRAINING})
    (compared,) = comparisons(rows, measured)
    assert compared.method == "sieve"
    assert 0.4 < compared.predicted_seconds < 0.5
    assert compared.error == pytest.approx(compared.predicted_seconds / 0.4 - 1)
