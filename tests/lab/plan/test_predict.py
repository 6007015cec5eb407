"""The model of a step: what must hold whatever the numbers are."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradsieve.exchange.cost import LinkCost, Links, NodeCost
from gradsieve.lab.plan.bare_step import BareStep, BucketSize, buckets_of, like_usual
from gradsieve.lab.plan.machine import Machine, Measured
from gradsieve.lab.plan.predict import predict
from gradsieve.lab.plan.rows import comparisons, described_link, plan_row
from gradsieve.topology import DENSE, DENSE_HALF, HIERARCHICAL, TOPOLOGIES

MACHINE = Machine(
    select=6e-10, section=1e-5, make=1e-8, read=5e-9, collective=5e-4, reduce=5e-10, halve=1e-9
)
BARE = BareStep(
    step=0.2,
    backward=0.12,
    wrapper=0.005,
    buckets=(BucketSize(300_000, 2), BucketSize(6_000_000, 3), BucketSize(4_000_000, 5)),
)
costs = st.builds(LinkCost, latency=st.floats(1e-5, 0.1), rate=st.floats(1e5, 1e10))
sizes = st.sampled_from([1, 2, 8])
links = st.builds(
    lambda count, size, everyone, within: Links(
        count * size, everyone, NodeCost(size, within, everyone)
    ),
    st.integers(2, 512),
    sizes,
    costs,
    costs,
)
topologies = st.sampled_from(list(TOPOLOGIES.values()))


def halved(cost):
    return replace(cost, rate=cost.rate / 2)


@given(topologies, links, st.floats(0.01, 8))
def test_no_exchange_is_quicker_than_none(topology, links, bits):
    seconds = predict(topology, BARE, MACHINE, links, bits)
    assert BARE.step + BARE.wrapper <= seconds < math.inf


@given(topologies, links, st.floats(0.01, 8))
def test_more_bits_and_slower_links_take_no_less(topology, links, bits):
    seconds = predict(topology, BARE, MACHINE, links, bits)
    assert predict(topology, BARE, MACHINE, links, 2 * bits) >= seconds - 1e-9
    nodes = replace(
        links.nodes, within=halved(links.nodes.within), across=halved(links.nodes.across)
    )
    slower = replace(links, everyone=halved(links.everyone), nodes=nodes)
    assert predict(topology, BARE, MACHINE, slower, bits) >= seconds - 1e-9


@given(topologies, st.integers(2, 4096), costs, st.floats(0.01, 8))
def test_only_hierarchical_needs_nodes(topology, ranks, cost, bits):
    seconds = predict(topology, BARE, MACHINE, Links(ranks, cost), bits)
    assert (seconds == math.inf) == (topology is HIERARCHICAL)


def test_on_many_ranks_two_shots_are_quicker_and_on_two_one_is():
    cost = LinkCost(1e-4, 12.5e6)
    for count, *names in ((2, "gather", "two-shot"), (64, "two-shot", "gather")):
        quicker, slower = (
            predict(TOPOLOGIES[name], BARE, MACHINE, Links(count, cost), 0.5) for name in names
        )
        assert quicker < slower


def test_a_slow_link_is_waited_for_and_a_fast_one_is_hidden():
    slow = predict(DENSE, BARE, MACHINE, Links(2, LinkCost(1e-4, 12.5e6)), 32)
    assert slow == pytest.approx(0.2 + 10.3e6 * 4 / 12.5e6, rel=0.05)
    half = predict(DENSE_HALF, BARE, MACHINE, Links(2, LinkCost(1e-4, 12.5e6)), 16)
    assert half == pytest.approx(0.2 + 10.3e6 * 2 / 12.5e6, rel=0.05)
    fast = predict(DENSE, BARE, MACHINE, Links(2, LinkCost(1e-5, 1e12)), 32)
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
    bare = like_usual(350e6, 0.3)
    elements = sum(bucket.elements for bucket in bare.buckets)
    assert elements == pytest.approx(350e6, rel=0.01)
    row = plan_row("mine", bare, MACHINE, "1gbit", 8, 0.25)
    assert row.seconds["dense"] > 2
    assert row.quickest == (min(row.seconds, key=row.seconds.get),)
    # A step of three seconds hides every exchange: all are named, in order.
    small = plan_row("small", like_usual(1e6, 3.0), MACHINE, "1gbit", 2, 0.25)
    assert small.quickest == tuple(sorted(small.seconds, key=small.seconds.get))
    with pytest.raises(ValueError, match="furlong"):
        plan_row("mine", bare, MACHINE, "1furlong", 8, 0.25)


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
    # The machine was measured with one rank per node.
    rows.append(rows[0] | {"ranks_per_node": 2})
    measured = Measured(MACHINE, {"gpt": BARE})
    (compared,) = comparisons(rows, measured)
    assert compared.method == "sieve"
    assert 0.4 < compared.predicted_seconds < 0.5
    assert compared.error == pytest.approx(compared.predicted_seconds / 0.4 - 1)
