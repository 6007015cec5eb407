"""How the residual of a parameter lies in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor


def residual_like(parameter: Tensor) -> Tensor:
    """Return zeros (float32) that lie as DDP lays out the gradient of a parameter."""
    residual = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False).detach()
    # DDP lays out the gradients of parameters with gaps or overlaps contiguously.
    return residual if residual.stride() == parameter.stride() else residual.contiguous()


def laid_out(values: Tensor, stride: Sequence[int]) -> Tensor:
    """Return a copy (float32) with other strides, which must leave no gaps."""
    empty = torch.empty_strided(
        values.shape, tuple(stride), dtype=torch.float32, device=values.device
    )
    return empty.copy_(values)


def flat_of(tensor: Tensor) -> Tensor:
    """Return a flat view of a tensor without gaps, in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def row_numel(parameter: Tensor) -> int:
    """Return the number of elements of a row or filter, which lie together; 0 for a vector."""
    return parameter.numel() // max(1, parameter.shape[0]) if parameter.dim() > 1 else 0
