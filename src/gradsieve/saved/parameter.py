"""Check the saved state of one parameter, as far as that is possible without the model."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gradsieve.saved.fields import count, items, number, numbers, refuse, with_keys
from gradsieve.saved.leaf import opened_leaf
from gradsieve.saved.memory import fills_memory, in_memory_order
from gradsieve.sieve import Moments

FIELDS = (
    "threshold",
    "moments",
    "mean_square",
    "residual",
    "stride",
    "rotation",
    "owned",
    "dealt",
)
MOMENTS = tuple(field.name for field in fields(Moments) if field.name != "magnitudes")
COUNTS = ("numel", "survivors", "nonfinite")
ROTATION = ("steps", "vectors", "covariances")
LARGEST_FLOAT = torch.finfo(torch.float32).max
LARGEST_SQUARE = 1e80
"""Largest sum or mean of squares."""
ORTHONORMAL = 1e-3
"""Largest difference between products of the vectors of a basis and 0 or 1. Rounding leaves some
1e-5."""


def require_parameter(name: str, saved: object, world_size: int) -> None:
    """Raise ValueError, naming the field, if the saved parameter is not valid.

    Args:
        world_size: the number of ranks that exchange.
    """
    field = f"parameter {name}"
    found = with_keys(field, saved, FIELDS)
    if found["threshold"] is not None:
        number(f"{field}: threshold", found["threshold"], 0.0, finite=False)
    if found["mean_square"] is not None:
        require_square(f"{field}: mean_square", found["mean_square"])
    require_kept(field, found, world_size)
    moments = opened_leaf(f"{field}: moments", found["moments"])
    if moments is not None:
        require_moments(f"{field}: moments", moments, found["residual"].numel())


def require_square(field: str, saved: object) -> None:
    """Require a positive mean of squares, since a geometric mean over steps never leaves 0."""
    number(field, saved, 0.0, LARGEST_SQUARE)
    if saved == 0:
        refuse(field, "positive", 0)


def require_moments(field: str, saved: object, numel: int) -> None:
    """Require the moments of a parameter, or of a piece of one.

    Args:
        numel: the number of elements of the whole parameter.
    """
    found = with_keys(field, saved, MOMENTS)
    for name in MOMENTS:
        if name in COUNTS:
            count(f"{field}.{name}", found[name], min(1, numel) if name == "numel" else 0, numel)
        else:
            least = -LARGEST_SQUARE if name == "sum" else 0.0
            number(f"{field}.{name}", found[name], least, LARGEST_SQUARE)
    count(f"{field}.survivors", found["survivors"], 0, found["numel"])
    count(f"{field}.nonfinite", found["nonfinite"], 0, found["survivors"])


def require_kept(field: str, saved: Mapping[str, Any], world_size: int) -> None:
    """Require a residual and the fields that go with it."""
    residual = numbers(f"{field}: residual", saved["residual"])
    stride = items(f"{field}: stride", saved["stride"], residual.dim())
    for step in stride:
        count(f"{field}: stride", step)
    if not fills_memory(residual.shape, stride):
        refuse(f"{field}: stride", f"that of a dense tensor of {list(residual.shape)}", stride)
    if saved["rotation"] is not None:
        require_rotation(f"{field}: rotation", saved["rotation"])
    if saved["owned"] is not None:
        require_owned(f"{field}: owned", saved["owned"], residual.numel())
    if saved["dealt"] is not None:
        flat = in_memory_order(residual, stride)
        require_dealt(f"{field}: dealt", saved["dealt"], flat, world_size)


def require_owned(field: str, saved: object, numel: int) -> None:
    start, kept = items(field, saved, 2)
    count(f"{field}, its start,", start)
    kept = numbers(f"{field}, its residual,", kept, dims=1)
    if start + kept.numel() > numel:
        refuse(field, f"a piece of {numel} elements", f"{start} to {start + kept.numel()}")


def require_dealt(field: str, saved: object, flat: Tensor, world_size: int) -> None:
    """Require the piece of a parameter whose residual this rank keeps.

    Args:
        flat: the residual in its order in memory, which must be 0 outside the piece.
    """
    start, stop, size = items(field, saved, 3)
    count(f"{field}, its start,", start, 0, flat.numel())
    count(f"{field}, its stop,", stop, start, flat.numel())
    count(f"{field}, its size,", size, 1, world_size)
    if bool(flat[:start].any()) or bool(flat[stop:].any()):
        refuse(field, "all that the rank keeps", f"a residual outside {start} to {stop}")


def require_rotation(field: str, saved: object) -> None:
    found = with_keys(field, saved, ROTATION)
    count(f"{field}.steps", found["steps"])
    vectors = items(f"{field}.vectors", found["vectors"])
    covariances = items(f"{field}.covariances", found["covariances"])
    if len(vectors) != len(covariances):
        refuse(f"{field}.vectors", f"as many as covariances, {len(covariances)}", len(vectors))
    for place, (basis, covariance) in enumerate(zip(vectors, covariances, strict=True)):
        basis = numbers(f"{field}.vectors[{place}]", basis, dims=2)
        if basis.shape[0] != basis.shape[1]:
            refuse(f"{field}.vectors[{place}]", "square", list(basis.shape))
        require_orthonormal(f"{field}.vectors[{place}]", basis)
        numbers(f"{field}.covariances[{place}]", covariance, basis.shape, largest=LARGEST_FLOAT)


def require_orthonormal(field: str, basis: Tensor) -> None:
    products = basis.double() @ basis.double().T
    products.diagonal().sub_(1)
    if basis.numel() and float(products.abs().max()) > ORTHONORMAL:
        refuse(field, f"orthonormal to {ORTHONORMAL:g}", f"{float(products.abs().max()):g}")
