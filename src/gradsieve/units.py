"""Numbers with units, as people write them."""

import re

_RATE_UNITS = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_COUNT = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d{1,2})?)\s*([a-z]*)", re.ASCII)


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


def format_rate(rate: int) -> str:
    """Return `rate` (bits/s) in words: "1 Gbit/s", "2.5 Mbit/s"."""
    for unit, size in (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3)):
        if rate >= size:
            return f"{rate / size:.10g} {unit}"
    return f"{rate} bit/s"


def parse_count(text: str) -> float:
    """Return a number of parameters, 1 or more: "350M", "1.5B", "20k", "350e6", "350000000".

    Raises:
        ValueError: `text` is none; the message says which forms are accepted.
    """
    match = _COUNT.fullmatch(text.strip().lower().replace(",", "").replace("_", ""))
    count = 0.0
    if match is not None and match[2] in _COUNT_UNITS:
        count = float(match[1]) * _COUNT_UNITS[match[2]]
    if count < 1:
        raise ValueError(
            f"not a number of parameters: {text!r}; give 1 or more, as in 350000000 or 350e6, "
            "or with k, M, G or B (10^9), as in 350M or 1.5B"
        )
    return count
