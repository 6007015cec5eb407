"""The order of the elements of a saved residual in memory, by which its pieces are numbered."""

from collections.abc import Sequence

from torch import Tensor


def order_in_memory(shape: Sequence[int], stride: Sequence[int]) -> list[int]:
    """Return the dimensions larger than 1, from the outermost in memory to the innermost."""
    return sorted((d for d, size in enumerate(shape) if size > 1), key=lambda d: -stride[d])


def fills_memory(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Return whether a tensor fills its memory without gaps and overlaps."""
    expected = 1
    for dimension in reversed(order_in_memory(shape, stride)):
        if stride[dimension] != expected:
            return False
        expected *= shape[dimension]
    return True


def in_memory_order(tensor: Tensor, stride: Sequence[int]) -> Tensor:
    """Return a flat copy of a tensor, in the order that these strides give to its elements."""
    order = order_in_memory(tensor.shape, stride)
    rest = [d for d in range(tensor.dim()) if d not in order]
    return tensor.detach().permute(*rest, *order).reshape(-1).clone()


def from_memory_order(flat: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Undo `in_memory_order`: return a contiguous tensor of this shape."""
    order = order_in_memory(shape, stride)
    rest = [d for d in range(len(shape)) if d not in order]
    permuted = [*rest, *order]
    back = sorted(range(len(shape)), key=lambda d: permuted[d])
    return flat.view([shape[d] for d in permuted]).permute(*back).contiguous()
