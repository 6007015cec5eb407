"""The order of a saved residual's elements in memory, in which its pieces are counted."""

from collections.abc import Sequence

from torch import Tensor


def order_in_memory(shape: Sequence[int], stride: Sequence[int]) -> list[int]:
    """The dimensions from the outermost in memory to the innermost; one of size 1 is none."""
    return sorted((d for d, size in enumerate(shape) if size > 1), key=lambda d: -stride[d])


def fills_memory(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor lies without gaps and overlaps."""
    expected = 1
    for dimension in reversed(order_in_memory(shape, stride)):
        if stride[dimension] != expected:
            return False
        expected *= shape[dimension]
    return True


def in_memory_order(tensor: Tensor, stride: Sequence[int]) -> Tensor:
    """A flat copy, in the order of a tensor that `fills_memory` with these strides."""
    order = order_in_memory(tensor.shape, stride)
    rest = [d for d in range(tensor.dim()) if d not in order]
    return tensor.detach().permute(*rest, *order).reshape(-1).clone()


def from_memory_order(flat: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The way back from `in_memory_order`: contiguous, of this shape."""
    order = order_in_memory(shape, stride)
    rest = [d for d in range(len(shape)) if d not in order]
    permuted = [*rest, *order]
    back = sorted(range(len(shape)), key=lambda d: permuted[d])
    return flat.view([shape[d] for d in permuted]).permute(*back).contiguous()
