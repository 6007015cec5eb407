"""exchange="auto" in simulated steps: the quicker topology is taken, and looked at again."""

import pytest

from gradsieve.exchange.cost import LinkCost, Links
from gradsieve.telemetry.report import StepReport
from gradsieve.topology import DENSE, TOPOLOGIES
from gradsieve.topology.choice import FIRST_RUN, LONGEST_RUN, LOOK, Choice

BUCKETS = 4
COMPUTATION = 0.1
GRADIENT_BYTES = 40_000_000


class Steps:
    """Steps of known length, each told of with the next one's frames."""

    def __init__(
        self, *, ranks=2, rate=125e6, latency=1e-4, sieve=0.11, dense=0.4, frames=4e5, **begins
    ):
        links = Links(ranks, LinkCost(latency, rate))
        self.choice = Choice(links, GRADIENT_BYTES, **begins)
        self.sieve, self.dense, self.frames = sieve, dense, frames
        self.names, self.seconds = [], 0.0
        self.told = None
        self.dense_step = 0.0

    def run(self, steps):
        for _ in range(steps):
            topology = self.choice.topology
            self.names.append(topology.name)
            if topology is DENSE:
                self.dense_step = self.dense
                self.seconds += self.dense
                self.choice.end_dense_step()
                if self.told is not None:
                    self.told = self.report()
                continue
            self.seconds += self.sieve
            if self.told is not None:
                self.choice.end_sieve_step(self.told, BUCKETS)
            self.told = self.report()
        return self

    def report(self):
        extra = self.sieve - COMPUTATION
        sums = self.frames / self.choice.links.ranks
        sends_sums = self.choice.topology is TOPOLOGIES["two-shot"]
        return StepReport(
            scale=1.0,
            frame_bytes=self.frames + sums * sends_sums,
            step=self.sieve,
            window=0.05,
            select=0.002,
            code=0.002,
            overhead=0.001,
            add=0.0,
            meet=0.001,
            transfer=0.02,
            wait=extra * 0.8,
            stolen=extra * 0.2,
            dense_step=self.dense_step,
        )


def test_on_a_slow_link_dense_steps_are_not_tried_again():
    steps = Steps(rate=12.5e6).run(300)
    assert steps.names[:FIRST_RUN] == ["dense"] * FIRST_RUN
    assert set(steps.names[FIRST_RUN:]) == {"gather"}
    assert "gather" in steps.choice.reason


@pytest.mark.parametrize(("rate", "dense"), [(12.5e6, 5), (2.5e6, 3), (1e6, 1), (0.5e6, 0)])
def test_the_first_steps_are_dense_where_that_takes_no_minute(rate, dense):
    steps = Steps(rate=rate, dense=16.0).run(40)
    assert steps.names == ["dense"] * dense + ["gather"] * (40 - dense)


@pytest.mark.parametrize(("rate", "dense"), [(125e6, 5), (25e6, 1), (12.5e6, 0), (2.5e6, 0)])
def test_where_thresholds_begin_low_only_quick_steps_are_dense(rate, dense):
    steps = Steps(rate=rate, dense=16.0, begins_low=True).run(40)
    assert steps.names == ["dense"] * dense + ["gather"] * (40 - dense)


def test_where_sending_everything_is_quicker_it_is_what_most_steps_do():
    steps = Steps(rate=5e9, sieve=0.13, dense=0.105).run(1000)
    assert steps.names.count("dense") > 900
    assert "105.0 ms a dense step, 130.0 ms with frames" in steps.choice.reason or (
        steps.choice.is_looking
    )
    # The sieve is looked at again, seldom.
    looks = steps.names[200:].count("gather")
    assert 0 < looks <= 2 * LOOK * (800 // LONGEST_RUN + 1)


def test_dense_steps_that_looked_quicker_and_are_not_are_tried_ever_more_seldom():
    steps = Steps(rate=5e9, sieve=0.11, dense=0.2).run(1000)
    assert 0 < steps.names.count("dense") <= 40
    assert steps.seconds < 1.05 * 1000 * steps.sieve


def test_a_link_that_slows_down_is_noticed():
    steps = Steps(rate=5e9, sieve=0.13, dense=0.105).run(400)
    steps.dense = 1.0
    steps.run(LONGEST_RUN + 20)
    steps.names.clear()
    steps.run(200)
    assert steps.names.count("dense") < 20


@pytest.mark.parametrize(
    ("ranks", "frames", "latency", "name"),
    [
        (2, 4e5, 1e-4, "gather"),
        (8, 4e5, 1e-4, "two-shot"),
        # Many small frames between sites: two more round trips a bucket cost more than bytes.
        (8, 4e3, 0.02, "gather"),
    ],
)
def test_frames_take_the_topology_that_the_model_finds_shorter(ranks, frames, latency, name):
    steps = Steps(ranks=ranks, frames=frames, latency=latency, rate=12.5e6).run(60)
    assert steps.names[-1] == name
    assert len(set(steps.names[-20:])) == 1


def test_the_model_of_a_link():
    link = LinkCost(latency=0.001, rate=1e6)
    assert link.gather(5, 1e5) == pytest.approx(0.402)
    assert link.two_shot(5, 1e5) == pytest.approx(0.164)
    assert link.all_reduce(5, 1e5) == pytest.approx(0.168)
