"""The settings of a sieve in one line of text: "POLICY=NUMBER,OPTION=VALUE"."""

from collections.abc import Callable, Mapping
from typing import Any

from gradsieve.thresholds import Density, Fixed, Sigma, Threshold, UnsentMean

POLICIES: Mapping[str, Callable[[float], Threshold]] = {
    "balanced-sigma": lambda k: Sigma(k, of="balanced"),
    "density": Density,
    "fixed": Fixed,
    "sigma": Sigma,
    "unsent-mean": UnsentMean,
}
OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "exchange": str,
    "min_numel": int,
    "ramp_steps": int,
    "rotation": int,
    "values": str,
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
            settings["threshold"] = POLICIES[name](float(value))
        elif name in OPTIONS:
            settings[name] = OPTIONS[name](value)
        else:
            raise ValueError(
                f"write POLICY=NUMBER, one of {', '.join(POLICIES)}, and any of "
                f"{', '.join(OPTIONS)}, with commas between"
            )
    return settings
