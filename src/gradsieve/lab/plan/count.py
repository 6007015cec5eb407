"""Numbers of parameters with units, as people write them."""

import re

import typer

_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_COUNT = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d{1,2})?)\s*([a-z]*)", re.ASCII)


def parse_count(text: str) -> float:
    """Return a number of parameters, 1 or more: "350M", "1.5B", "20k", "350e6", "350000000".

    Raises:
        ValueError: `text` is no such number; the message says which forms are accepted.
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


def count_of(text: str) -> float:
    """Parse a number of parameters that is an option of a command."""
    try:
        return parse_count(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
