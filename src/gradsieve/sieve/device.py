"""The sieve in torch operations, for tensors on any device."""

import torch
from torch import Tensor

from gradsieve.sieve.moments import Moments


def sieve_on_device(
    gradient: Tensor, residual: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Moments]:
    """Sieve flat float32 tensors of one device; the residual is updated in place.

    One synchronisation with the device for the number of survivors, one for the moments.
    """
    accumulated = gradient + residual
    finite = accumulated.isfinite()
    limit = torch.tensor(threshold, dtype=torch.float32, device=gradient.device)
    passed = (accumulated.abs() > limit) | ~finite
    kept = torch.where(finite, accumulated, residual)
    sent = passed & finite
    residual.copy_(torch.where(sent, 0.0, kept))
    indices = passed.nonzero().squeeze(1).int()
    values = accumulated[passed]
    moments = moments_on_device(kept, sent, survivors=indices.numel(), finite=finite)
    return indices, values, moments


def measure_on_device(gradient: Tensor, residual: Tensor | None) -> Moments:
    before = torch.zeros_like(gradient) if residual is None else residual
    accumulated = gradient + before
    finite = accumulated.isfinite()
    kept = torch.where(finite, accumulated, before)
    return moments_on_device(kept, torch.zeros_like(finite), survivors=0, finite=finite)


def moments_on_device(kept: Tensor, sent: Tensor, *, survivors: int, finite: Tensor) -> Moments:
    exact = kept.double()
    unsent = exact.masked_fill(sent, 0.0)
    passed = exact - unsent
    largest = exact.abs().max() if exact.numel() else exact.new_zeros(())
    totals = torch.stack(
        [
            exact.sum(),
            unsent.abs().sum(),
            unsent.square().sum(),
            passed.abs().sum(),
            passed.square().sum(),
            largest,
            (~finite).sum().double(),
        ]
    )
    return Moments.from_totals(kept.numel(), survivors, totals.tolist())
