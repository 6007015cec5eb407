"""`select` and `measure`: the public functions that prune a gradient, and look at one."""

import torch
from torch import Tensor

from gradsieve.sieve.cpu import measure_on_cpu, sieve_on_cpu
from gradsieve.sieve.device import measure_on_device, sieve_on_device
from gradsieve.sieve.moments import Moments
from gradsieve.sieve.workspace import Workspace

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_NUMEL = 2**31 - 1


def select(
    gradient: Tensor,
    residual: Tensor,
    threshold: float,
    *,
    out: Workspace | None = None,
    clear: bool = False,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor, Moments]:
    """Prune one parameter's gradient by a threshold, with error feedback.

    The accumulated gradient is gradient + residual, rounded once to float32. Elements with
    ``abs(accumulated) > threshold`` survive. The others become the new residual, which is 0 at the
    survivors. An element that is NaN or infinite always survives, and keeps its old residual.

    Args:
        gradient: float32, float16 or bfloat16, of any shape and strides, with fewer than 2^31
            elements.
        residual: contiguous float32 with as many elements, on the gradient's device. The new
            residual is written to it, unless `into` is given.
        threshold: 0 or more, in the units of the gradient. At infinity only elements that are not
            finite survive.
        out: memory to reuse. The returned tensors are then views into it, valid until it is
            cleared. It is used on the CPU only.
        clear: whether to set the gradient to 0 in the same pass. It must be contiguous float32.
        into: where to write the new residual instead, like `residual`, but in other memory than
            this and the gradient.

    Returns:
        indices (int32 [survivors], ascending, into the flattened parameter), values (float32
        [survivors]), both on the gradient's device, and the moments of the accumulated gradient.

    Raises:
        TypeError: a tensor has another dtype, or the gradient is sparse.
        ValueError: the threshold is negative or NaN; sizes, devices or strides do not fit; or
            tensors overlap that must not.

    Example:
        What is not sent stays in the residual until its sum exceeds the threshold.

        >>> import torch
        >>> import gradsieve as gs
        >>> gradient, residual = torch.tensor([0.5, -2.0, 0.75]), torch.zeros(3)
        >>> indices, values, moments = gs.select(gradient, residual, 1.0)
        >>> indices.tolist(), values.tolist(), residual.tolist()
        ([1], [-2.0], [0.5, 0.0, 0.75])
        >>> moments.survivors, moments.unsent_mean
        (1, 0.625)
        >>> indices, values, _ = gs.select(gradient, residual, 1.0)
        >>> indices.tolist(), values.tolist(), residual.tolist()
        ([1, 2], [-2.0, 1.5], [1.0, 0.0, 0.0])
    """
    check(gradient, residual)
    if into is not None:
        check_into(gradient, residual, into)
    if not threshold >= 0:
        raise ValueError(f"the threshold must be 0 or more, got {threshold}")
    flat, left = flatten(gradient), residual.detach().view(-1)
    if clear and flat.data_ptr() != gradient.data_ptr():
        raise ValueError("a gradient that is to be cleared must be float32 and contiguous")
    target = left if into is None else into.detach().view(-1)
    if flat.device.type != "cpu":
        return sieve_on_device(flat, left, threshold, clear=clear, into=target)
    workspace = Workspace() if out is None else out
    before = left.numpy()
    after = before if into is None else target.numpy()
    indices, values, moments = sieve_on_cpu(
        flat.numpy(), before, after, threshold, workspace, clear=clear
    )
    survivors = torch.from_numpy(indices), torch.from_numpy(values)
    if out is None:
        survivors = survivors[0].clone(), survivors[1].clone()
    return *survivors, moments


def measure(gradient: Tensor, residual: Tensor | None = None) -> Moments:
    """Return the moments of gradient + residual, as if nothing survived, and change nothing.

    Args:
        gradient: as for `select`.
        residual: as for `select`, or None for zeros.

    Raises:
        TypeError, ValueError: as for `select`.

    Example:
        >>> import torch
        >>> import gradsieve as gs
        >>> moments = gs.measure(torch.tensor([3.0, -4.0]))
        >>> moments.mean_magnitude, moments.largest, moments.gradient_square_sum
        (3.5, 4.0, 25.0)
    """
    check(gradient, residual)
    flat = flatten(gradient)
    left = None if residual is None else residual.detach().view(-1)
    if flat.device.type != "cpu":
        return measure_on_device(flat, left)
    return measure_on_cpu(flat.numpy(), None if left is None else left.numpy())


def flatten(tensor: Tensor) -> Tensor:
    """Return a tensor as contiguous float32 [numel], copied only if it is not that already."""
    return tensor.detach().reshape(-1).float().contiguous()


def check(gradient: Tensor, residual: Tensor | None) -> None:
    """Raise where a gradient cannot be selected from, or its residual does not fit."""
    if gradient.layout is not torch.strided:
        raise TypeError(
            f"the gradient is {gradient.layout}; pass a dense one "
            "(torch.nn.Embedding(..., sparse=False) makes dense gradients)"
        )
    if gradient.dtype not in DTYPES:
        raise TypeError(f"the gradient is {gradient.dtype}; supported are {names(DTYPES)}")
    if gradient.numel() > LARGEST_NUMEL:
        raise ValueError(
            f"the gradient has {gradient.numel()} elements, more than int32 indices can name; "
            "split the parameter"
        )
    if residual is not None:
        check_residual(gradient, residual, "the residual")


def check_into(gradient: Tensor, residual: Tensor, into: Tensor) -> None:
    """Raise where the new residual cannot be written to `into`."""
    check_residual(gradient, into, "into")
    for name, tensor in (("the residual", residual), ("the gradient", gradient)):
        if overlap(tensor, into):
            raise ValueError(f"into lies in memory of {name}; pass a tensor of its own")


def overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether the memory from the first to the last element of both overlaps."""
    if one.device != other.device or not one.numel() or not other.numel():
        return False
    (start, stop), (other_start, other_stop) = extent(one), extent(other)
    return start < other_stop and other_start < stop


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the first element, and the one behind the last in memory."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sides)
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def check_residual(gradient: Tensor, residual: Tensor, name: str) -> None:
    """Raise where a residual does not fit the gradient."""
    if residual.dtype is not torch.float32:
        raise TypeError(f"{name} must be torch.float32, got {residual.dtype}")
    if residual.numel() != gradient.numel():
        raise ValueError(f"{name} has {residual.numel()} elements, the gradient {gradient.numel()}")
    if residual.device != gradient.device:
        raise ValueError(f"{name} is on {residual.device}, the gradient on {gradient.device}")
    if not residual.is_contiguous():
        raise ValueError(f"{name} is written to and must be contiguous")


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype) for dtype in dtypes)
