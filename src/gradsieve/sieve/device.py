"""The sieve in torch operations, for tensors on any device."""

import torch
from torch import Tensor

from gradsieve.sieve.moments import Moments


def sieve_on_device(
    gradient: Tensor,
    residual: Tensor,
    threshold: float,
    *,
    clear: bool = False,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor, Moments]:
    """Sieve flat float32 tensors of one device; the new residual goes `into` or is left in place.

    One synchronisation with the device for the number of survivors, one for the moments.
    """
    accumulated, squares = gradient + residual, gradient.double().square().sum()
    finite = accumulated.isfinite()
    limit = torch.tensor(threshold, dtype=torch.float32, device=gradient.device)
    passed = (accumulated.abs() > limit) | ~finite
    kept = torch.where(finite, accumulated, residual)
    sent = passed & finite
    (residual if into is None else into).copy_(torch.where(sent, 0.0, kept))
    indices = passed.nonzero().squeeze(1).int()
    values = accumulated[passed]
    moments = moments_on_device(kept, sent, squares, survivors=indices.numel(), finite=finite)
    if clear:
        gradient.zero_()
    return indices, values, moments


def measure_on_device(gradient: Tensor, residual: Tensor | None) -> Moments:
    before = torch.zeros_like(gradient) if residual is None else residual
    accumulated = gradient + before
    finite = accumulated.isfinite()
    kept = torch.where(finite, accumulated, before)
    squares = gradient.double().square().sum()
    return moments_on_device(kept, torch.zeros_like(finite), squares, survivors=0, finite=finite)


def moments_on_device(
    kept: Tensor, sent: Tensor, squares: Tensor, *, survivors: int, finite: Tensor
) -> Moments:
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
            squares,
            largest,
            (~finite).sum().double(),
        ]
    )
    return Moments.from_totals(kept.numel(), survivors, totals.tolist())
