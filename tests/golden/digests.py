"""Digests of what a run leaves, and numbers without rounding: the same bits give the same text."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TAKES_TIME = ("slowest_rank", "note", "checksum")
"""Fields that depend on clocks, beside those in seconds; a checksum covers such a one."""


def digest(thing: Any) -> str:
    total = hashlib.sha256()
    absorb(total, thing)
    return total.hexdigest()[:16]


def absorb(total: Any, thing: Any) -> None:
    if isinstance(thing, Tensor):
        flat = thing.detach().cpu().contiguous().reshape(-1)
        total.update(f"{thing.dtype}{list(thing.shape)}".encode())
        total.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(thing, Mapping):
        for name, item in without_clocks(thing).items():
            total.update(f"{name!r}:".encode())
            absorb(total, item)
    elif isinstance(thing, list | tuple):
        total.update(f"{len(thing)} of".encode())
        for item in thing:
            absorb(total, item)
    else:
        total.update(repr(exact(thing)).encode())


def exact(thing: Any) -> Any:
    """What JSON holds of a record: floats in hexadecimal, without what depends on clocks."""
    if isinstance(thing, Mapping):
        return {str(name): exact(item) for name, item in without_clocks(thing).items()}
    if isinstance(thing, list | tuple):
        return [exact(item) for item in thing]
    return thing.hex() if isinstance(thing, float) else thing


def without_clocks(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        name: value
        for name, value in fields.items()
        if name not in TAKES_TIME and not str(name).endswith("seconds")
    }


def digests_of(tree: Mapping[str, Any], depth: int = 2) -> dict[str, Any]:
    """A digest for each field, and for each field of those that are mappings."""
    return {
        name: digests_of(item, depth - 1)
        if depth > 1 and isinstance(item, Mapping)
        else digest(item)
        for name, item in without_clocks(tree).items()
    }
