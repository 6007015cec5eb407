"""Rates with units, as commands and settings take them."""

import pytest

import gradsieve as gs
from gradsieve.lab.methods.sieve_words import read_config
from gradsieve.runtime.units import parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20mbit", 20_000_000),
        ("100mbit", 100_000_000),
        ("1gbit", 1_000_000_000),
        ("2.5gbit", 2_500_000_000),
        ("64kbit", 64_000),
        ("1000000", 1_000_000),
        ("9600bit", 9_600),
        (" 1 Gbit ", 1_000_000_000),
    ],
)
def test_a_rate_in_words_becomes_bits_per_second(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1mbit", "0", "1mbyte", "1e9", "1.gbit", "gbit"])
def test_what_is_no_rate_is_named_with_what_is_accepted(text):
    with pytest.raises(ValueError, match=r"kbit, mbit or gbit") as raised:
        parse_rate(text)
    assert repr(text) in str(raised.value)


def test_a_budget_takes_a_rate_as_the_commands_write_it():
    written = gs.Budget(bits_per_second="1gbit")
    assert written == gs.Budget(bits_per_second=1e9)
    assert repr(written) == repr(gs.Budget(bits_per_second=1e9))
    assert gs.Budget(bits_per_second=" 20 Mbit ").bits_per_second == 20e6
    for text, rate in (("20mbit", 2e7), ("2e7", 2e7), ("20000000", 2e7)):
        found = read_config(f"budget-bits-per-second={text}").threshold
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
