"""What was saved of one parameter, checked by itself, without the model."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gradsieve.saved.fields import count, items, number, numbers, refuse, with_keys
from gradsieve.saved.memory import fills_memory
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
ORTHONORMAL = 1e-3
"""How far products of a basis' vectors may be from 0 and 1: rounding leaves some 1e-5."""


def require_parameter(name: str, saved: object) -> None:
    """Raise ValueError, naming the field, where it makes no sense."""
    field = f"parameter {name}"
    found = with_keys(field, saved, FIELDS)
    if found["threshold"] is not None:
        number(f"{field}: threshold", found["threshold"], 0.0, finite=False)
    if found["mean_square"] is not None:
        number(f"{field}: mean_square", found["mean_square"], 0.0)
    if found["moments"] is not None:
        require_moments(f"{field}: moments", found["moments"])
    require_kept(field, found)


def require_moments(field: str, saved: object) -> None:
    found = with_keys(field, saved, MOMENTS)
    for name in MOMENTS:
        if name in COUNTS:
            count(f"{field}.{name}", found[name])
        else:
            number(f"{field}.{name}", found[name], -math.inf if name == "sum" else 0.0)
    count(f"{field}.survivors", found["survivors"], 0, found["numel"])
    count(f"{field}.nonfinite", found["nonfinite"], 0, found["survivors"])


def require_kept(field: str, saved: Mapping[str, Any]) -> None:
    """A residual and what goes with it."""
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
        require_dealt(f"{field}: dealt", saved["dealt"], residual.numel())


def require_owned(field: str, saved: object, numel: int) -> None:
    start, kept = items(field, saved, 2)
    count(f"{field}, its start,", start)
    kept = numbers(f"{field}, its residual,", kept, dims=1)
    if start + kept.numel() > numel:
        refuse(field, f"a piece of {numel} elements", f"{start} to {start + kept.numel()}")


def require_dealt(field: str, saved: object, numel: int) -> None:
    start, stop, size = items(field, saved, 3)
    count(f"{field}, its start,", start, 0, numel)
    count(f"{field}, its stop,", stop, start, numel)
    count(f"{field}, its size,", size, 1)


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
