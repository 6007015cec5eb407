"""Numbers of parameters, as a user writes them."""

import pytest

from gradsieve.lab.plan.count import parse_count


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
