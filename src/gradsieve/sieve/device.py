"""Selection in torch operations, for tensors on any device."""

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
    """Do what `select` does, for flat float32 tensors of one device.

    The host waits for the device twice: for the number of survivors, and for the moments.
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
    """Do what `measure` does, for flat float32 tensors of one device."""
    before = torch.zeros_like(gradient) if residual is None else residual
    accumulated = gradient + before
    finite = accumulated.isfinite()
    kept = torch.where(finite, accumulated, before)
    squares = gradient.double().square().sum()
    return moments_on_device(kept, torch.zeros_like(finite), squares, survivors=0, finite=finite)


def moments_on_device(
    kept: Tensor, sent: Tensor, squares: Tensor, *, survivors: int, finite: Tensor
) -> Moments:
    """Return the moments, summed in float64.

    kept: the accumulated gradient, with the old residual where it is not finite; sent: which
    elements are finite survivors; squares: the sum of squares of the gradient; survivors: their
    number; finite: which elements of the accumulated gradient are finite.
    """
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
