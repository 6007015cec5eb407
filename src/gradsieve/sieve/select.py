"""Select: add the residual, compare, compact, write the new residual back."""

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
    """Prune one parameter's gradient by a threshold.

    The accumulated gradient is gradient + residual, rounded once to float32. Elements with
    ``abs(accumulated) > threshold`` are the survivors; the others become the new residual, written
    in place, or to `into`. A non-finite element always survives and leaves its old residual.

    Args:
        gradient: any shape and strides; float32, float16 or bfloat16.
        residual: contiguous float32 with as many elements, on the gradient's device.
        threshold: not negative; infinity keeps everything.
        out: memory to reuse; the returned tensors are then views into it that hold until it is
            cleared. Used on the CPU only.
        clear: set the gradient to 0 in the same pass; it must be float32 and contiguous then.
        into: where the new residual goes, so that `residual` stays as it was: as for `residual`,
            in other memory than it and the gradient.

    Returns:
        indices (int32 [survivors], ascending, into the flattened parameter), values (float32
        [survivors]) and the moments of the accumulated gradient.

    Raises:
        TypeError: a dtype other than these, or a sparse gradient.
        ValueError: a negative or NaN threshold; sizes, devices or strides that do not fit, or
            memory that overlaps.
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
    """The moments that `select` would yield at threshold infinity, with nothing changed.

    Without a residual they are those of the gradient alone. Arguments and errors as for `select`.
    """
    check(gradient, residual)
    flat = flatten(gradient)
    left = None if residual is None else residual.detach().view(-1)
    if flat.device.type != "cpu":
        return measure_on_device(flat, left)
    return measure_on_cpu(flat.numpy(), None if left is None else left.numpy())


def flatten(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).float().contiguous()


def check(gradient: Tensor, residual: Tensor | None) -> None:
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
    check_residual(gradient, into, "into")
    for name, tensor in (("the residual", residual), ("the gradient", gradient)):
        if overlap(tensor, into):
            raise ValueError(f"into lies in memory of {name}; pass a tensor of its own")


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether some byte lies between the first and the last element of both."""
    if one.device != other.device or not one.numel() or not other.numel():
        return False
    (start, stop), (other_start, other_stop) = extent(one), extent(other)
    return start < other_stop and other_start < stop


def extent(tensor: Tensor) -> tuple[int, int]:
    """The address of the first element, and that behind the last in memory."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sides)
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def check_residual(gradient: Tensor, residual: Tensor, name: str) -> None:
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
