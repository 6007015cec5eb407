"""Check what `SieveState.state_dict` has saved, and that it belongs to this rank and run."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gradsieve.control.budget import SMALLEST_SCALE
from gradsieve.saved.fields import by_name, count, items, number, text, with_keys
from gradsieve.saved.leaf import opened_leaf
from gradsieve.saved.parameter import require_parameter, require_square
from gradsieve.saved.seal import SEAL, mixture_of, require_whole
from gradsieve.telemetry.report import NO_REPORT

VERSION = 3
FIELDS = (
    "version",
    "rank",
    "world_size",
    "settings",
    "step",
    "min_numel",
    "weights",
    "mean_square",
    "scale",
    "note",
    "parameters",
    SEAL,
)
LARGEST_CRC = 2**32 - 1
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""The address in the default ``repr`` of an object. It differs in each process."""


def lines_of(settings: Sequence[str]) -> list[str]:
    """Return settings as they are saved."""
    return [ADDRESS.sub("", line) for line in settings]


def require_sound(saved: object) -> Mapping[str, Any]:
    """Return the state if it is valid and as it was saved.

    Raises:
        ValueError: it is not. The message names the field or the checksum.
    """
    found = opened(saved, VERSION, "a gradsieve state", FIELDS)
    require_all_loaded(found)
    try:
        require_fields(found)
        require_whole(found)
    except ValueError as error:
        raise ValueError(f"{error}{mixture_of(found)}") from error
    return found


def require_all_loaded(found: Mapping[str, Any]) -> None:
    """Raise ValueError for a state whose weights have a checksum, and which has no parameters."""
    weights = opened_leaf("weights", found["weights"])
    if isinstance(weights, Mapping) and weights and not found["parameters"]:
        raise ValueError(
            "the state was loaded without its parameters, as torch.distributed.checkpoint loads "
            "into a SieveState that has none: call state.bind(model) first, or save "
            "gs.checkpoint.PerRank(state)"
        )


def require_fields(found: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, if the content of one is not valid."""
    count("step", found["step"])
    if found["parameters"] or found["min_numel"] is not None:
        count("min_numel", found["min_numel"])
    if found["mean_square"] is not None:
        require_square("mean_square", found["mean_square"])
    number("scale", found["scale"], SMALLEST_SCALE, 1 / SMALLEST_SCALE)
    for told in items("note", found["note"], len(NO_REPORT)):
        number("note", told, 0.0)
    for name, parameter in by_name("parameters", found["parameters"]).items():
        require_parameter(name, parameter, found["world_size"])
    weights = opened_leaf("weights", found["weights"])
    if weights is None:
        with_keys("parameters, without weights,", found["parameters"], ())
    else:
        for name, crc in with_keys("weights", weights, found["parameters"]).items():
            count(f"weights[{name}]", crc, 0, LARGEST_CRC)


def opened(saved: object, version: int, kind: str, fields: Sequence[str]) -> Mapping[str, Any]:
    """Check the version, the fields, the place and the settings of a state, and return it.

    Raises:
        ValueError: one of them is not valid.
    """
    require_version(saved, version, kind)
    found = with_keys("the state", saved, fields)
    require_place(found)
    for line in items("settings", found["settings"]):
        text("settings", line)
    return found


def require_version(saved: object, version: int, kind: str) -> None:
    if isinstance(saved, Mapping) and "states" in saved:
        raise ValueError("these are the states of all ranks: give them to load_gathered")
    found = saved.get("version") if isinstance(saved, Mapping) else None
    if type(found) is int and found == version:
        return
    todo = ""
    if type(found) is int and 0 < found < version:
        todo = (
            ", which an older gradsieve saved: finish the run with that one, or go on without this "
            "state, which loses what the ranks had not sent yet"
        )
    raise ValueError(f"expected {kind} of version {version}, found version {found!r}{todo}")


def require_place(saved: Mapping[str, Any]) -> None:
    """Require a rank, a world size and a checksum."""
    world_size = count("world_size", saved["world_size"], 1)
    count("rank", saved["rank"], 0, world_size - 1)
    text(SEAL, saved[SEAL])


def require_own_place(saved_rank: int, saved_size: int, rank: int, world_size: int) -> None:
    """Raise ValueError if the state belongs to another rank or world size."""
    if (saved_rank, saved_size) == (rank, world_size):
        return
    todo = (
        "load on each rank what it has saved itself. A tool that keeps one state for all ranks "
        "needs gs.checkpoint.PerRank(state), with torch.distributed.checkpoint, or "
        "state.gathered_state_dict(), where rank 0 writes one file"
    )
    if saved_size != world_size:
        todo = (
            f"gs.reshard(states, {world_size}) makes states of {world_size} ranks from those of "
            f"all {saved_size} (a rank knows its process group when that has been made)"
        )
    raise ValueError(
        f"this is the state of rank {saved_rank} of {saved_size}, loaded on rank {rank} of "
        f"{world_size}: what a rank has not sent is its own, and would be lost or counted twice; "
        f"{todo}"
    )


def require_own_shards(saved: Sequence[str], mine: Sequence[str]) -> None:
    """Raise ValueError if a state belongs to other shards of the model.

    Args:
        saved, mine: the settings of the state and of this rank. Those of a model that is whole say
            nothing of shards.
    """
    theirs, ours = shards_in(saved), shards_in(mine)
    if theirs != ours:
        raise ValueError(
            f"this state is of {named_shards(theirs)}, and this rank holds {named_shards(ours)}: "
            "load on each rank what it has saved itself. If the model is cut otherwise now, load "
            "the model alone, and begin without the state (after OuterSync.finish nothing is lost)"
        )


def shards_in(settings: Sequence[str]) -> str | None:
    """Return which shards a state or a rank holds; None if the model is whole."""
    return dict(map(divided, settings)).get("shards")


def named_shards(places: str | None) -> str:
    return "a whole model" if places is None else f"one shard ({places})"


def require_settings(saved: Sequence[str], mine: Sequence[str]) -> None:
    """Raise ValueError if settings differ. The message gives both values of each."""
    theirs, ours = dict(map(divided, saved)), dict(map(divided, mine))
    differing = [
        f"{name} was {theirs.get(name, 'unknown')} and is {ours.get(name, 'unknown')} here"
        for name in {**ours, **theirs}
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise ValueError(
            f"the state was saved with other settings: {'; '.join(differing)}. Go on with those "
            "of the run that saved it; exchange may be set anew after loading"
        )


def divided(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name, value


def require_weights(
    saved: Mapping[str, int],
    mine: Mapping[str, int],
    todo: str = "load the model's checkpoint of the same step first, then this state",
) -> None:
    """Raise ValueError if the weights of the model are not those at the time of saving.

    Args:
        saved: the saved checksum of each parameter.
        mine: the checksums of some of the parameters now.
        todo: the end of the message, which says what to do.
    """
    others = [name for name, crc in mine.items() if saved[name] != crc]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"the model's weights are not those of the step at which this state was saved "
            f"({others[0]}{more}): {todo}"
        )


def require_min_numel(saved: int | None, mine: int | None) -> None:
    """Raise ValueError if `min_numel` has changed. It is None while it is not known yet."""
    if None not in (saved, mine) and saved != mine:
        raise ValueError(
            f"min_numel was {saved} when the state was saved and is {mine} here: other parameters "
            "travel whole"
        )


def require_scale(scale: float, largest: float | None) -> None:
    """Require a valid scale of the thresholds.

    Args:
        largest: the largest scale of the budget of this run; None without a budget.
    """
    if largest is None:
        number("scale", scale, 1.0, 1.0)
    else:
        number("scale", scale, SMALLEST_SCALE, largest)


def finite_note(note: Sequence[float]) -> list[float]:
    """Return a report, as numbers, with finite numbers of 0 or more.

    A time may be slightly negative, since it is the difference of two clocks that are read one
    after the other.
    """
    return [max(0.0, number) if math.isfinite(number) else 0.0 for number in note]
