"""Rates with units, as people write them."""

import re

_RATE_UNITS = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)


def parse_rate(text: str) -> int:
    """Return the rate in bits per second: "20mbit", "1gbit", "2.5gbit", "64kbit", "1000000".

    Units are decimal (1 kbit is 1000 bits) and may be written in any case.

    Raises:
        ValueError: `text` is no rate; the message says which forms are accepted.
    """
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or match[2] not in _RATE_UNITS or (rate := _bits(match[1], match[2])) < 1:
        raise ValueError(
            f"not a rate: {text!r}; give bits per second as a positive number, "
            'or with kbit, mbit or gbit, as in "20mbit" or "2.5gbit"'
        )
    return rate


def _bits(number: str, unit: str) -> int:
    return round(float(number) * _RATE_UNITS[unit])
