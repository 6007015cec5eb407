"""The options of a sieve in one line of text: "POLICY=NUMBER,OPTION=VALUE"."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from gradsieve.config import SieveConfig, require_word
from gradsieve.control.budget import Budget
from gradsieve.control.thresholds import Density, Fixed, Sigma, Threshold, UnsentMean


def number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


POLICIES: Mapping[str, Callable[[str], Threshold]] = {
    "balanced-sigma": lambda k: Sigma(float(k), of="balanced"),
    "budget": lambda limit: Budget(limit),  # type: ignore[arg-type]
    "budget-bits-per-second": lambda rate: Budget(bits_per_second=number_or_text(rate)),
    "budget-bytes": lambda number: Budget(bytes_per_step=float(number)),
    "budget-seconds": lambda number: Budget(seconds_per_step=float(number)),
    "density": lambda target: Density(float(target)),
    "fixed": lambda value: Fixed(float(value)),
    "sigma": lambda k: Sigma(float(k)),
    "unsent-mean": lambda scale: UnsentMean(float(scale)),
}
TYPES = get_type_hints(SieveConfig)
OPTIONS = tuple(sorted(field.name for field in fields(SieveConfig) if field.name != "threshold"))
WORDS = {"yes": True, "no": False}


def read_option(name: str, text: str) -> Any:
    """Return the value of an option, of its type in `SieveConfig`; raises ValueError."""
    if TYPES[name] is bool:
        return WORDS[require_word(name, text, tuple(WORDS))]
    if TYPES[name] in (int, int | None):
        return read_count(name, text)
    return text


def read_count(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {text!r}") from None


def read_config(text: str) -> SieveConfig:
    """Return the options that `text` names; an empty text names none.

    Raises:
        ValueError: an option is unknown, or a value is out of range.
    """
    options: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if name in POLICIES and "threshold" not in options:
            options["threshold"] = POLICIES[name](value)
        elif name in OPTIONS:
            options[name] = read_option(name, value)
        else:
            raise ValueError(
                f"write POLICY=NUMBER, one of {', '.join(POLICIES)}, and any of "
                f"{', '.join(OPTIONS)}, with commas between"
            )
    return SieveConfig(**options)
