"""The settings of a sieve in one line of text: "POLICY=NUMBER,OPTION=VALUE"."""

from collections.abc import Callable, Mapping
from typing import Any

from gradsieve.budget import Budget
from gradsieve.codec import VALUES
from gradsieve.requirements import require_word
from gradsieve.route import EXCHANGES
from gradsieve.thresholds import Density, Fixed, Sigma, Threshold, UnsentMean


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
WORDS = {"yes": True, "no": False}


def yes_or_no(word: str) -> bool:
    require_word("error_feedback", word, tuple(WORDS))
    return WORDS[word]


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "error_feedback": yes_or_no,
    "exchange": lambda word: require_word("exchange", word, EXCHANGES),
    "min_numel": int,
    "node_size": int,
    "ramp_steps": int,
    "rotation": int,
    "start_step": int,
    "values": lambda word: require_word("values", word, VALUES),
}


def read_settings(text: str) -> dict[str, Any]:
    """The arguments of `SieveState` that `text` names; an empty one names none.

    Raises:
        ValueError: it is written otherwise, or a number is out of range.
    """
    settings: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if name in POLICIES and "threshold" not in settings:
            settings["threshold"] = POLICIES[name](value)
        elif name in OPTIONS:
            settings[name] = OPTIONS[name](value)
        else:
            raise ValueError(
                f"write POLICY=NUMBER, one of {', '.join(POLICIES)}, and any of "
                f"{', '.join(OPTIONS)}, with commas between"
            )
    return settings
