"""Numbers with units, as commands and settings take them."""

import pytest

import gradsieve as gs
from gradsieve.lab.methods.sieve_words import read_settings
from gradsieve.units import parse_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("350M", 350e6),
        ("350m", 350e6),
        (" 1.5 B ", 1.5e9),
        ("7g", 7e9),
        ("20k", 20_000),
        ("350e6", 350e6),
        ("100000000.0", 1e8),
        ("350,000,000", 350e6),
        ("350_000", 350_000),
        ("1", 1),
    ],
)
def test_a_number_of_parameters_may_have_a_unit(text, count):
    assert parse_count(text) == pytest.approx(count, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "M", "350Q", "350MB", "-1M", "0", "0.5", "nan", "inf", "1e999", "many", "1e-3k"]
)
def test_what_is_no_number_of_parameters_is_named_with_examples(text):
    with pytest.raises(ValueError, match=r"as in 350M or 1\.5B") as raised:
        parse_count(text)
    assert repr(text) in str(raised.value)


def test_a_budget_takes_a_rate_as_the_commands_write_it():
    written = gs.Budget(bits_per_second="1gbit")
    assert written == gs.Budget(bits_per_second=1e9)
    assert repr(written) == repr(gs.Budget(bits_per_second=1e9))
    assert gs.Budget(bits_per_second=" 20 Mbit ").bits_per_second == 20e6
    for text, rate in (("20mbit", 2e7), ("2e7", 2e7), ("20000000", 2e7)):
        found = read_settings(f"budget-bits-per-second={text}")["threshold"]
        assert found == gs.Budget(bits_per_second=rate)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"bits_per_second": "fast"}, ValueError, 'as in "20mbit"'),
        ({"bits_per_second": "1mbyte"}, ValueError, 'as in "20mbit"'),
        ({"bits_per_second": "-1mbit"}, ValueError, 'as in "20mbit"'),
        ({"bits_per_second": ""}, ValueError, 'as in "20mbit"'),
        ({"bits_per_second": -1.0}, ValueError, "positive and finite"),
        ({"bits_per_second": [1]}, TypeError, "bits_per_second must be a number"),
        ({"bytes_per_step": "1MB"}, TypeError, "bytes_per_step must be a number"),
        ({"seconds_per_step": "1s"}, TypeError, "seconds_per_step must be a number"),
        ({"limit": "1gbit"}, ValueError, "write one of"),
        ({"bits_per_second": "1gbit", "bytes_per_step": 5}, ValueError, "write one of"),
    ],
)
def test_what_is_no_budget_is_refused_in_words(arguments, error, words):
    with pytest.raises(error, match=words):
        gs.Budget(**arguments)
