"""Check what `OuterSync.state_dict` has saved."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradsieve.saved.fields import (
    by_name,
    count,
    items,
    mapping,
    numbers,
    refuse,
    require_finite,
    shown,
    text,
    with_keys,
)
from gradsieve.saved.leaf import opened_leaf
from gradsieve.saved.seal import SEAL, require_whole
from gradsieve.saved.sieve import (
    LARGEST_CRC,
    opened,
    require_sound,
)

VERSION = 5
FIELDS = (
    "version",
    "rank",
    "world_size",
    "settings",
    "schedule",
    "names",
    "weights",
    "holding",
    "model",
    "optimizer",
    "sieve",
    "inherited",
    "under_way",
    SEAL,
)
SCHEDULE = ("every", "step", "place", "began", "since", "ends")
UNDER_WAY = ("fragment", "averages", "departed", "buffers", "every", "since")


def require_sound_outer(saved: object) -> Mapping[str, Any]:
    """Return the state if it is valid and as it was saved.

    Raises:
        ValueError: it is not. The message names the field or the checksum.
    """
    found = opened(saved, VERSION, "a state of OuterSync", FIELDS)
    require_schedule(found["schedule"])
    names = [text("names", name) for name in items("names", found["names"])]
    for name, weights in with_keys("weights", found["weights"], names).items():
        numbers(f"weights[{name}]", weights)
    for name in items("holding", opened_leaf("holding", found["holding"])):
        if text("holding", name) not in names:
            refuse("holding", "names of parameters", shown(name))
    for name, part in by_name("inherited", opened_leaf("inherited", found["inherited"])).items():
        if name not in names:
            refuse("inherited", "names of parameters", shown(name))
        numbers(f"inherited[{name}]", part, found["weights"][name].shape)
    for name, crc in with_keys("model", opened_leaf("model", found["model"]), names).items():
        count(f"model[{name}]", crc, 0, LARGEST_CRC)
    require_optimizer(opened_leaf("optimizer", found["optimizer"]), len(names))
    under_way = opened_leaf("under_way", found["under_way"])
    if under_way is not None:
        require_under_way(under_way)
    if (under_way is None) != (found["schedule"]["ends"] is None):
        refuse("schedule.ends", "None where no exchange is under_way, and only there", "otherwise")
    sieve = require_sound(found["sieve"])
    for field in ("rank", "world_size"):
        count(f"sieve.{field}", sieve[field], found[field], found[field])
    require_whole(found)
    return found


def require_schedule(saved: object) -> None:
    found = with_keys("schedule", saved, SCHEDULE)
    every = count("schedule.every", found["every"], 1)
    step = count("schedule.step", found["step"])
    count("schedule.place", found["place"], 0, every)
    began = count("schedule.began", found["began"], 0, step)
    count("schedule.since", found["since"], 0, began)
    if found["ends"] is not None:
        count("schedule.ends", found["ends"], step + 1)


def require_under_way(saved: object) -> None:
    found = with_keys("under_way", saved, UNDER_WAY)
    for field in ("fragment", "every", "since"):
        count(f"under_way.{field}", found[field], int(field != "fragment"))
    for average in items("under_way.averages", found["averages"]):
        numbers("under_way.averages", average, dims=1)
    for weights in items("under_way.departed", found["departed"]):
        require_floats("under_way.departed", weights)
        require_finite("under_way.departed", weights)
    for average in items("under_way.buffers", found["buffers"]):
        # A mask among the buffers may be infinite.
        if require_floats("under_way.buffers", average).isnan().any():
            refuse("under_way.buffers", "free of NaN", "one")


def require_optimizer(saved: object, parameters: int) -> None:
    """Require the state of a torch optimizer of so many parameters."""
    found = with_keys("optimizer", saved, ("state", "param_groups"))
    held: list[int] = []
    for group in items("optimizer.param_groups", found["param_groups"]):
        places = by_name("optimizer.param_groups", group).get("params")
        held += [
            count("optimizer.param_groups.params", place, 0, parameters - 1)
            for place in items("optimizer.param_groups.params", places)
        ]
    if sorted(held) != list(range(parameters)):
        refuse("optimizer.param_groups.params", f"each of {parameters} parameters once", held)
    for place, kept in mapping("optimizer.state", found["state"]).items():
        count("a key of optimizer.state", place, 0, parameters - 1)
        by_name(f"optimizer.state[{place}]", kept)
    for field, value in leaves("optimizer", found):
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_complex() or value.is_meta:
                refuse(field, "a dense tensor of real numbers", shown(value))
            if value.is_floating_point():
                require_finite(field, value)
        elif isinstance(value, complex) or (isinstance(value, float) and math.isnan(value)):
            refuse(field, "a number", shown(value))


def leaves(field: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the values in nested dicts and lists, each with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(f"{field}[{key!r}]", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from leaves(f"{field}[{place}]", item)
    else:
        yield field, value


def require_floats(field: str, value: object) -> Tensor:
    if (
        not isinstance(value, Tensor)
        or value.layout is not torch.strided
        or not value.is_floating_point()
        or value.is_meta
    ):
        refuse(field, "a dense tensor of real numbers", shown(value))
    return value
