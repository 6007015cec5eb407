"""Checks of the fields of a saved state.

Each check returns the value, or raises a ValueError that names the field.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

LARGEST = 1e30
"""Largest magnitude of an element. A larger one is taken for damage, since its square overflows."""
LONGEST_SHOWN = 80
"""Largest number of characters of a value in a message."""
LARGEST_COUNT = 2**63 - 1


def refuse(field: str, wanted: str, found: object) -> NoReturn:
    raise ValueError(f"the saved state cannot be loaded: {field} must be {wanted}, found {found}")


def shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}, {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def mapping(field: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        refuse(field, "a dict", shown(value))
    return value


def with_keys(field: str, value: object, keys: Collection[str]) -> Mapping[str, Any]:
    """Require a dict with exactly these keys."""
    found = mapping(field, value)
    missing = [key for key in keys if key not in found]
    unknown = sorted((key for key in found if key not in keys), key=repr)
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has an unknown {', '.join(shown(key) for key in unknown)}" if unknown else ""
        raise ValueError(
            f"the saved state cannot be loaded: {field} {' and '.join(filter(None, (lacks, has)))}"
        )
    return found


def by_name(field: str, value: object) -> Mapping[str, Any]:
    found = mapping(field, value)
    for name in found:
        text(f"a name in {field}", name)
    return found


def text(field: str, value: object) -> str:
    if not isinstance(value, str):
        refuse(field, "text", shown(value))
    return value


def items(field: str, value: object, length: int | None = None) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or length not in (None, len(value)):
        refuse(field, "a list" if length is None else f"a list of {length}", shown(value))
    return value


def count(field: str, value: object, least: int = 0, most: int = LARGEST_COUNT) -> int:
    """Require a whole number between two limits."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        limit = f"from {least}" if most == LARGEST_COUNT else f"between {least} and {most}"
        refuse(field, f"a whole number {limit}", shown(value))
    return value


def number(
    field: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    finite: bool = True,
) -> float:
    wanted = f"a{' finite' * finite} number"
    if not isinstance(value, int | float) or isinstance(value, bool):
        refuse(field, wanted, shown(value))
    if isinstance(value, int) and abs(value) > LARGEST_COUNT:
        refuse(field, wanted, shown(value))
    if not least <= value <= most:
        limit = f"of at least {least}" if most == math.inf else f"between {least} and {most}"
        refuse(field, f"{wanted} {limit}", shown(value))
    if finite and not math.isfinite(value):
        refuse(field, wanted, shown(value))
    return float(value)


def numbers(
    field: str,
    value: object,
    shape: Sequence[int] | None = None,
    *,
    dims: int | None = None,
    dtype: torch.dtype = torch.float32,
    largest: float = LARGEST,
) -> Tensor:
    """Require a dense tensor of finite elements.

    Args:
        shape: the shape that it must have; None for any.
        dims: the number of dimensions that it must have; None for any.
        largest: the largest magnitude of an element.
    """
    wanted = f"a dense {dtype} tensor"
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        refuse(field, wanted, shown(value))
    if value.dtype is not dtype:
        refuse(field, wanted, shown(value))
    if shape is not None and list(value.shape) != list(shape):
        refuse(field, f"{wanted} of {list(shape)}", shown(value))
    if dims is not None and value.dim() != dims:
        refuse(field, f"{wanted} of {dims} dimensions", shown(value))
    require_finite(field, value, largest)
    return value.detach()


def require_finite(field: str, tensor: Tensor, largest: float = LARGEST) -> None:
    if not tensor.numel():
        return
    least, most = (float(bound) for bound in torch.aminmax(tensor.detach()))
    # With a NaN among the elements, both bounds are NaN.
    if not (math.isfinite(least) and math.isfinite(most)):
        refuse(field, "finite throughout", f"{least} to {most}")
    if max(-least, most) > largest:
        refuse(field, f"of magnitudes up to {largest:g}", f"{least:g} to {most:g}")
