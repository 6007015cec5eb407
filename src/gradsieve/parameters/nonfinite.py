"""Find the gradients that are NaN or infinite, and name their parameters."""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gradsieve.telemetry.clock import StepClock


def is_finite(flat: Tensor) -> bool:
    """Return whether all elements are finite. It takes one pass if they are."""
    # A sum of finite numbers may overflow, so a sum that is not finite proves nothing.
    return math.isfinite(float(flat.sum())) or bool(flat.isfinite().all())


def note_nonfinite(clock: StepClock, named: Sequence[tuple[str, int]], flat: Tensor) -> None:
    """Note which gradients of this rank are not finite.

    Args:
        named: the name and the number of elements of each parameter in `flat`, in order.
        flat: the gradients, flat, of any floating dtype.
    """
    if parts := nonfinite_parts(flat, [numel for _, numel in named]):
        clock.nonfinite += flat.numel() - int(flat.isfinite().sum())
        clock.nonfinite_names += [named[part][0] for part in parts]


def nonfinite_parts(flat: Tensor, numels: Sequence[int]) -> list[int]:
    """Return the numbers of the parts, `numels` long, that hold an element that is not finite."""
    if is_finite(flat):
        return []
    starts = torch.tensor([*accumulate(numels, initial=0)][:-1], dtype=torch.int64, device="cpu")
    places = (~flat.isfinite()).nonzero().squeeze(1).cpu()
    return sorted({*(torch.searchsorted(starts, places, right=True) - 1).tolist()})


def placeholder_names(parameters: Sequence[Tensor]) -> list[tuple[str, int]]:
    """Return descriptions of unnamed parameters, and their numbers of elements."""
    return [(f"a parameter of shape {list(p.shape)}", p.numel()) for p in parameters]
