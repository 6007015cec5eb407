"""Where two records differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from digests import digest

RECORDED = Path(__file__).parent / "recorded.json"
"""What the test compares with."""
MISSING = "nothing"


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """In the order in which they were recorded, each with its place and both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            pair = old.get(name, MISSING), new.get(name, MISSING)
            yield from differences(*pair, f"{place}, {name}" if place else name)
    elif isinstance(old, list) and isinstance(new, list):
        for number, pair in enumerate(zip_longest(old, new, fillvalue=MISSING)):
            # One of the steps is a step.
            yield from differences(*pair, f"{place.removesuffix('s')} {number}")
    elif old != new:
        yield f"{place}: was {shown(old)}, is {shown(new)}"


def shown(value: Any) -> str:
    """Floats as they were written, and as one reads them."""
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        return f"{value} ({float.fromhex(value):.9g})"
    return value if isinstance(value, str) else json.dumps(value)[:200]


def by_rank(recorded: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {
        name: {f"rank {rank}": found for rank, found in enumerate(ranks)}
        for name, ranks in recorded.items()
    }


def small_part(found: Mapping[str, Any]) -> dict[str, Any]:
    """A summary of what a rank has recorded: enough to notice a change, not to find it."""
    *_, last = found["steps"]
    told = [step.get("record") or step["records"] for step in found["steps"]]
    [exchange] = [name for name in found["end"]["totals"]["exchanges"] if name != "plain"]
    return {
        "parameters at the end": digest(last["parameters"]),
        "frames": digest(found["frames"]),
        "number of frames": len(found["frames"]),
        "records": digest(told),
        "residuals": digest([found["end"][name] for name in ("residuals", "owned_residuals")]),
        "frame_bytes": found["end"]["totals"]["frame_bytes"],
        "exchange": exchange,
    }


def small_parts(recorded: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    return {name: [small_part(found) for found in ranks] for name, ranks in recorded.items()}
