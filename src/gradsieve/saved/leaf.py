"""Values whose form changes from step to step, wrapped so that a saved state keeps its form.

torch.distributed.checkpoint gives every value in nested dicts and lists a key of its own, and loads
only what the object that it loads into has, too. A fresh state must therefore have the keys of one
that has stepped. A tuple is one value to it, whatever is inside.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradsieve.saved.fields import items

Leaf = tuple[Any]


def opened_leaf(field: str, saved: object) -> Any:
    """Return the value inside a saved leaf, which is a tuple of one.

    Raises:
        ValueError: it is no leaf. The message names the field.
    """
    (value,) = items(field, saved, 1)
    return value


def on_host(saved: Any) -> Any:
    """Return plain data with its tensors in CPU memory, so that a process without the device that
    they were on can load them."""
    if isinstance(saved, Tensor):
        return saved.cpu()
    if isinstance(saved, Mapping):
        return {key: on_host(value) for key, value in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(on_host(value) for value in saved)
    return saved
