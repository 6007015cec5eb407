"""When exchanges begin and end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradsieve as gs
from gradsieve.outer.schedule import PLENTY, SCARCE, Schedule, schedule_of


class Watched:
    """A schedule, and what has happened: (step, fragment) and (step, "ends")."""

    def __init__(self, *arguments):
        self.schedule = Schedule(*arguments)
        self.seen = []

    def begin(self, fragment, delay):
        self.seen.append((self.schedule.step, fragment))

    def end(self):
        self.seen.append((self.schedule.step, "ends"))

    def run(self, steps):
        before = len(self.seen)
        for _ in range(steps):
            self.schedule.advance(self.begin, self.end)
        return self.seen[before:]

    def finish(self):
        before = len(self.seen)
        self.schedule.finish(self.begin, self.end)
        return self.seen[before:]


def test_every_fifth_step_without_delay():
    assert Watched(5, 1, 0).run(10) == [(5, 0), (5, "ends"), (10, 0), (10, "ends")]


def test_fragments_take_turns_and_end_later():
    assert Watched(6, 2, 2).run(12) == [
        (3, 0),
        (5, "ends"),
        (6, 1),
        (8, "ends"),
        (9, 0),
        (11, "ends"),
        (12, 1),
    ]


@given(st.data())
def test_each_fragment_once_a_phase_and_one_exchange_at_a_time(data):
    every = data.draw(st.integers(1, 30))
    fragments = data.draw(st.integers(1, every))
    delay = data.draw(st.integers(0, every // fragments))
    seen = Watched(every, fragments, delay).run(3 * every)
    begun = [what for _, what in seen if what != "ends"]
    assert begun == 3 * list(range(fragments))
    last_ends = fragments * 3 - (1 if delay else 0)
    ends = [step for step, what in seen if what == "ends"]
    begins = [step for step, what in seen if what != "ends"]
    assert len(ends) == last_ends
    assert all(end == begin + delay for begin, end in zip(begins, ends, strict=False))
    assert all(end <= following for end, following in zip(ends, begins[1:], strict=False))


def test_finishing_exchanges_what_was_not_yet_and_nothing_twice():
    watched = Watched(6, 2, 2)
    assert watched.finish() == []
    watched.run(4)
    assert watched.finish() == [(4, "ends"), (4, 0), (4, "ends"), (4, 1), (4, "ends")]
    assert watched.finish() == []
    assert watched.run(3) == [(7, 0)]
    assert watched.finish() == [(7, "ends"), (7, 1), (7, "ends")]
    whole = Watched(5, 1, 0)
    whole.run(5)
    assert whole.finish() == []


def phases(watched, scales):
    lengths, begun = [], 0
    for scale in scales:
        while True:
            happened = watched.run(1)
            if (watched.schedule.step, watched.schedule.fragments - 1) in happened:
                break
        watched.schedule.follow(scale)
        lengths.append(watched.schedule.step - begun)
        begun = watched.schedule.step
    return lengths


def test_the_phase_follows_the_budget_within_its_bounds():
    scarce, plenty, right = 2 * SCARCE, PLENTY / 2, (SCARCE + PLENTY) / 2
    assert phases(Watched((8, 14), 2, 0), [scarce, scarce, scarce, right, plenty, plenty]) == [
        8,
        10,
        13,
        14,
        14,
        11,
    ]


def test_a_saved_schedule_goes_on():
    seen = Watched(7, 3, 1).run(25)
    first, rest = Watched(7, 3, 1), Watched(7, 3, 1)
    before = first.run(12)
    rest.schedule.load(first.schedule.save())
    assert before + rest.run(13) == seen


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1, 0), "every must be 1 or more"),
        (((5, 4), 1, 0), "the least before the most"),
        (((1, 2, 3), 1, 0), "the least and the most"),
        ((5, 0, 0), "fragments must be 1 or more"),
        ((5, 6, 0), "6 fragments cannot take turns within every=5"),
        ((5, 1, -1), "delay must be between 0 and 5"),
        ((10, 4, 3), "delay must be between 0 and 2"),
        (((10, 20), 2, 6), "delay must be between 0 and 5"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Schedule(*arguments)


def test_a_number_of_steps_is_whole():
    with pytest.raises(TypeError, match=r"every must be a whole number, got 2\.5"):
        Schedule(2.5, 1, 0)
    with pytest.raises(TypeError, match="every must be a whole number, got '10'"):
        Schedule("10", 1, 0)
    with pytest.raises(TypeError, match="delay must be a whole number, got None"):
        Schedule(5, 1, None)


@pytest.mark.parametrize(
    ("policy", "shards", "bounds"),
    [
        (gs.Sigma(1), "", (20, 20)),
        (gs.Budget("auto"), "", (20, 100)),
        (gs.Budget(bits_per_second="1mbit"), "", (20, 100)),
        # Each shard would follow a budget of its own.
        (gs.Budget("auto"), "shard 0 of 2", (20, 20)),
    ],
)
def test_a_phase_that_is_not_named_follows_a_budget_where_it_can(policy, shards, bounds):
    schedule = schedule_of(None, 1, 0, policy, shards)
    assert (schedule.shortest, schedule.longest) == bounds


def test_a_phase_with_bounds_is_refused_where_nothing_sets_its_length():
    with pytest.raises(ValueError, match=r"every=\(5, 9\) follows a Budget, .* give one number"):
        schedule_of((5, 9), 1, 0, gs.Sigma(1), "")
    with pytest.raises(ValueError, match=r"another shard .* give one number"):
        schedule_of((5, 9), 1, 0, gs.Budget("auto"), "shard 0 of 2")
