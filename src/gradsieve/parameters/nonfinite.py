"""Gradients that are NaN or infinite."""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gradsieve.telemetry.clock import StepClock


def is_finite(flat: Tensor) -> bool:
    """Whether all elements are; one pass, where they are."""
    # A sum of finite numbers may overflow.
    return math.isfinite(float(flat.sum())) or bool(flat.isfinite().all())


def note_nonfinite(clock: StepClock, named: Sequence[tuple[str, int]], flat: Tensor) -> None:
    """Take down what is not finite of this rank's gradients.

    Args:
        named: names and numbers of elements of the parameters that lie in `flat`.
    """
    if parts := nonfinite_parts(flat, [numel for _, numel in named]):
        clock.nonfinite += flat.numel() - int(flat.isfinite().sum())
        clock.nonfinite_names += [named[part][0] for part in parts]


def nonfinite_parts(flat: Tensor, numels: Sequence[int]) -> list[int]:
    """Which of the parts, `numels` long, hold a number that is not finite."""
    if is_finite(flat):
        return []
    starts = torch.tensor([*accumulate(numels, initial=0)][:-1], dtype=torch.int64, device="cpu")
    places = (~flat.isfinite()).nonzero().squeeze(1).cpu()
    return sorted({*(torch.searchsorted(starts, places, right=True) - 1).tolist()})
