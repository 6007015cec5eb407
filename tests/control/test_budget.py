"""Budgets on simulated links: they settle, follow a change, and hold against late ranks."""

from dataclasses import replace

import pytest

from gradsieve.control.budget import Budget, BudgetSteering
from gradsieve.telemetry.report import StepReport, slowest

FORWARD, BACKWARD, BUCKETS = 0.03, 0.07, 4
LATENCY = 0.0005
SELECT, OVERHEAD = 0.0006, 0.0004
BYTES_AT_ONE = 100_000
ENCODE, DECODE = 2e-9, 3e-9
"""Seconds a byte."""


def simulated(frame_bytes, rate, *, scale=1.0, late=0.0, latency=LATENCY, cores_free=True):
    """The report of a step whose frames cross a link of `rate` bytes a second."""
    code, share = (ENCODE + DECODE) * frame_bytes, frame_bytes / BUCKETS
    each = (SELECT + OVERHEAD + code) / BUCKETS + 2 * latency + share / rate
    stolen = 0.0 if cores_free else (SELECT + OVERHEAD + code) * (BUCKETS - 1) / BUCKETS
    free, now = FORWARD, FORWARD
    for _ in range(BUCKETS):
        now += (BACKWARD + stolen) / BUCKETS
        free = max(free, now) + each
    wait = max(0.0, free - now) + late
    return StepReport(
        scale=scale,
        frame_bytes=frame_bytes,
        step=now + wait,
        window=(now - FORWARD) * (BUCKETS - 1) / BUCKETS,
        select=SELECT,
        code=code + OVERHEAD,
        overhead=OVERHEAD,
        add=0.0,
        meet=BUCKETS * latency + late,
        transfer=BUCKETS * (share / rate + latency),
        wait=wait,
        stolen=stolen,
    )


def exposed(report):
    return report.exposed / report.computation


class Link:
    """Bytes fall with the thresholds' scale, at once too far: the residual answers late.

    A report reaches the other ranks with the next step's frames.
    """

    def __init__(self, steering, rate, latency=LATENCY, begins_low=False):
        self.steering, self.rate, self.latency = steering, rate, latency
        self.begins_low = begins_low
        self.lagging = 1.0
        self.reports = []

    def run(self, steps, late=0.0):
        for _ in range(steps):
            scale = self.steering.scale
            if self.begins_low:
                scale = self.steering.early_scale(len(self.reports) + 1)
            frame_bytes = BYTES_AT_ONE * scale**-0.75 * (scale / self.lagging) ** -0.4
            self.lagging += 0.3 * (scale - self.lagging)
            changing = {"scale": scale, "late": late, "latency": self.latency}
            self.reports.append(simulated(frame_bytes, self.rate, **changing))
            if len(self.reports) > 1:
                self.steering.follow(self.reports[-2], BUCKETS)

    def last(self, steps=10):
        return self.reports[-steps:]


def most_bytes(rate, share=0.05):
    """Bytes that a link carries within the share of the computation, by trying."""
    sizes = [1000 * 1.02**n for n in range(700)]
    return max(size for size in sizes if exposed(simulated(size, rate)) <= share)


def require_settled(link):
    sent = [report.frame_bytes for report in link.last()]
    assert max(sent) / min(sent) < 1.15, "it oscillates"
    assert max(map(exposed, link.last())) < 0.055
    assert 0.7 * most_bytes(link.rate) < sent[-1] < 1.1 * most_bytes(link.rate)


@pytest.mark.parametrize("rate", [2.5e6, 12.5e6, 125e6])
def test_as_much_is_sent_as_is_hidden(rate):
    link = Link(BudgetSteering(Budget("auto")), rate)
    link.run(30)
    require_settled(link)


@pytest.mark.parametrize("rate", [0.2e6, 1e6, 2.5e6])
def test_more_is_sent_early_and_as_much_as_ever_later(rate):
    low, always = (
        Link(BudgetSteering(Budget("auto")), rate, begins_low=begins_low)
        for begins_low in (True, False)
    )
    for link in (low, always):
        link.run(120)
    early, usual = (sum(r.frame_bytes for r in link.reports[:20]) for link in (low, always))
    assert 1.5 * usual < early < 4 * usual
    assert low.reports[0].scale == pytest.approx(0.25)
    assert low.last()[-1].frame_bytes == pytest.approx(always.last()[-1].frame_bytes, rel=0.05)


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_link_that_changes_tenfold_is_followed_within_thirty_steps(factor):
    link = Link(BudgetSteering(Budget("auto")), 25e6)
    link.run(40)
    link.rate *= factor
    link.run(30)
    require_settled(link)


def test_bytes_a_step():
    link = Link(BudgetSteering(Budget(bytes_per_step=50_000)), 12.5e6)
    link.run(30)
    assert all(47_500 < report.frame_bytes < 52_500 for report in link.last())


def test_bits_a_second():
    link = Link(BudgetSteering(Budget(bits_per_second=4e6)), 12.5e6)
    link.run(40)
    for report in link.last():
        assert 3.8e6 < 8 * report.frame_bytes / report.step < 4.2e6


def test_seconds_a_step():
    link = Link(BudgetSteering(Budget(seconds_per_step=0.02)), 2.5e6)
    link.run(30)
    for report in link.last():
        assert 0.015 < report.exposed < 0.021


def test_bytes_are_not_cut_where_they_are_not_what_takes_the_time():
    """Between sites: each bucket's round trip alone is more than the share."""
    link = Link(BudgetSteering(Budget("auto")), 2.5e6, latency=0.04)
    link.run(60)
    for report in link.last():
        on_the_line = report.frame_bytes * (1 / link.rate + ENCODE + DECODE)
        assert 0.01 < on_the_line / report.computation < 0.1


def test_bytes_that_the_step_hides_are_sent_where_selecting_alone_takes_the_share():
    """No core is free: selecting takes 6 % of the computation however little is sent."""
    steering = BudgetSteering(Budget("auto"))
    for _ in range(60):
        frame_bytes = BYTES_AT_ONE / steering.scale
        report = simulated(frame_bytes, 2.5e6, scale=steering.scale, cores_free=False)
        computation, dear = report.computation, 0.06 * report.computation
        slow = {"select": dear, "stolen": report.stolen + dear, "step": report.step + dear}
        steering.follow(replace(report, **slow), BUCKETS)
    hidden = (BUCKETS - 1) / BUCKETS * BACKWARD * 2.5e6
    assert frame_bytes > 0.25 * hidden
    assert report.wait < 0.06 * computation


def test_what_was_measured_of_another_topology_does_not_count():
    link = Link(BudgetSteering(Budget("auto")), 2.5e6, latency=0.0001)
    link.run(40)
    link.latency = 0.004
    link.steering.forget_topology()
    link.run(6)
    assert min(link.steering.meets) >= BUCKETS * 0.004


def test_one_late_rank_changes_nothing():
    link = Link(BudgetSteering(Budget("auto")), 12.5e6)
    link.run(40)
    before = link.steering.scale
    link.run(1, late=3.0)
    link.run(20)
    assert link.steering.scale == pytest.approx(before, rel=0.1)
    require_settled(link)


def test_a_rank_that_is_early_does_not_make_the_exchange_look_dear():
    link = Link(BudgetSteering(Budget("auto")), 12.5e6)
    link.run(40)
    late = link.reports[-1]
    early = replace(late, meet=late.meet + 0.03, wait=late.wait + 0.03, step=late.step)
    assert slowest([early, late]) == late
    assert slowest([replace(late, frame_bytes=7e6), late]).frame_bytes == 7e6


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"limit": "most"},
        {"limit": "auto", "bytes_per_step": 5},
        {"bytes_per_step": 0},
        {"bits_per_second": -1},
        {"bits_per_second": 1e6, "bytes_per_step": 5},
        {"seconds_per_step": float("inf")},
    ],
)
def test_a_budget_is_one_positive_number_or_auto(arguments):
    with pytest.raises(ValueError, match="Budget"):
        Budget(**arguments)
