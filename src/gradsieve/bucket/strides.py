"""Find out how a gradient lies in a bucket of DDP after its parameter has changed its strides."""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gradsieve.bucket.bucket import Bucket
from gradsieve.errors import SieveError
from gradsieve.parameters.parameter import ParameterState

Stride = tuple[int, ...]
MOST_DIMENSIONS = 5
"""Number of dimensions up to which all orders of them are tried; beyond, only the usual one."""


class Move(NamedTuple):
    """A gradient whose layout in the bucket is not the one by which DDP will read it."""

    number: int
    """The number of the parameter in the bucket."""
    stride: Stride | None
    """The strides of the gradient in the bucket; None if it is not in the bucket at all."""


class Checked(NamedTuple):
    """A bucket in which the layout of all gradients is known."""

    memory: StorageWeakRef
    """A weak reference to the buffer. While it is kept, no other memory can have its address."""
    strides: list[Stride]
    """The strides of the parameters when the bucket was checked."""
    moves: list[Move]


class Layouts:
    """Lets gradients and residuals follow the strides of the parameters.

    DDP makes its buckets when the model is wrapped, and again after the first step or two. It then
    lays out each gradient by the strides of its parameter. If these strides change later
    (``model.to(memory_format=...)``), DDP still writes gradients by the old strides but reads
    averages by the new ones. With `gradient_as_bucket_view` it writes and reads by the strides of
    the view, and the same call may point the view to other memory. DDP reports none of this, so
    the layout is inferred from the gradient itself.
    """

    def __init__(self) -> None:
        self._checked: dict[int, Checked] = {}
        self._seen: dict[int, Stride] = {}
        """The first strides of each parameter, by its id."""
        self._are_views = False
        """Whether gradients are views of the buckets."""

    def follow(
        self, bucket: Bucket, find: Callable[[Tensor], ParameterState | None], ranks: int
    ) -> bool:
        """Lay out gradients and residuals as DDP will read the average, before a bucket is pruned.

        Args:
            find: a function that returns the state of a parameter; None while it is not known.
            ranks: the world size; see `ParameterState.lay_out`.

        Returns:
            Whether the layout of a residual has changed.

        Raises:
            SieveError: a parameter has changed its strides, and its gradient shows no layout.
        """
        memory = StorageWeakRef(bucket.buffer().untyped_storage())
        parameters = bucket.parameters()
        strides = [parameter.stride() for parameter in parameters]
        checked = self._checked.get(memory.cdata)
        if checked is not None and checked.strides == strides:
            move(bucket, checked.moves)
            return False
        self._checked = {k: c for k, c in self._checked.items() if not c.memory.expired()}
        gradients = [gradient.view(-1) for gradient in bucket.gradients()]
        for parameter, flat in zip(parameters, gradients, strict=True):
            self._seen.setdefault(id(parameter), dense_stride(parameter))
            self._are_views |= is_view(parameter.grad, flat)
        moves, changed, is_certain = [], False, True
        for number, (parameter, flat) in enumerate(zip(parameters, gradients, strict=True)):
            if parameter.dim() < 2:
                continue
            state = find(parameter)
            lying, is_shown = self._lying(parameter, flat, state)
            read = self._read(parameter, flat, state)
            if lying is None or lies(parameter.shape, lying) != lies(parameter.shape, read):
                moves.append(Move(number, lying))
            if state is not None and lies(state.shape, read) != lies(state.shape, state.stride):
                state.lay_out(read, ranks)
                changed = True
            is_certain &= is_shown and state is not None
        if is_certain:
            self._checked[memory.cdata] = Checked(memory, strides, moves)
        move(bucket, moves)
        return changed

    def _read(self, parameter: Tensor, flat: Tensor, state: ParameterState | None) -> Stride:
        """Return the strides by which DDP will read the average."""
        gradient = parameter.grad
        if gradient is not None and is_view(gradient, flat):
            return gradient.stride()
        # The view of an unused parameter cannot be seen.
        hidden = self._are_views and gradient is None and state is not None
        return state.stride if hidden and state is not None else dense_stride(parameter)

    def _lying(
        self, parameter: Tensor, flat: Tensor, state: ParameterState | None
    ) -> tuple[Stride | None, bool]:
        """Return the strides of a gradient in its bucket, and whether the gradient proves them.

        The strides are None if the gradient was a view that now points to other memory.
        """
        gradient, read = parameter.grad, self._read(parameter, flat, state)
        if gradient is None or gradient.dtype is not flat.dtype:
            return read, False
        if is_view(gradient, flat):
            return read, True
        if self._are_views:
            return None, True
        if not bool(flat.any()):
            return read, False
        first, shape = self._seen[id(parameter)], parameter.shape
        likely = distinct(shape, [read, first, *usual_strides(shape)])
        fitting = [stride for stride in likely if holds(flat, gradient, stride)]
        if not fitting:
            fitting = [stride for stride in dense_strides(shape) if holds(flat, gradient, stride)]
        if not fitting and lies(shape, first) != lies(shape, read):
            name = f"of shape {list(shape)}" if state is None else state.name
            raise SieveError(
                f"parameter {name} has changed its strides since DDP wrapped it, and its gradient, "
                "which a hook has changed, does not show how it lies in DDP's bucket: change the "
                "memory format before DDP(model)"
            )
        # Several layouts fit where elements are equal.
        return (fitting or likely)[0], len(fitting) < 2


def move(bucket: Bucket, moves: Sequence[Move]) -> None:
    """Lay out gradients in the bucket by the strides of their parameters, as DDP will read them."""
    if not moves:
        return
    parameters, gradients = bucket.parameters(), bucket.gradients()
    for number, stride in moves:
        parameter, flat = parameters[number], gradients[number].view(-1)
        gradient = parameter.grad
        if stride is not None:
            gradient = flat.clone().as_strided(parameter.shape, stride)
        if gradient is not None:
            flat.as_strided(parameter.shape, dense_stride(parameter)).copy_(gradient)


def is_view(gradient: Tensor | None, flat: Tensor) -> bool:
    return gradient is not None and gradient.data_ptr() == flat.data_ptr() and flat.numel() > 0


def holds(flat: Tensor, gradient: Tensor, stride: Stride) -> bool:
    """Return whether `flat`, read by `stride`, has the same bits as the gradient.

    Bits are compared because a NaN does not equal itself.
    """
    bits = torch.int16 if flat.element_size() == 2 else torch.int32
    return torch.equal(flat.as_strided(gradient.shape, stride).view(bits), gradient.view(bits))


def distinct(shape: Sequence[int], strides: Sequence[Stride]) -> list[Stride]:
    """Return the strides without those that mean the same layout as one before them."""
    found: dict[Stride, Stride] = {}
    for stride in strides:
        found.setdefault(lies(shape, stride), stride)
    return list(found.values())


def lies(shape: Sequence[int], stride: Stride) -> Stride:
    """Return the strides that tell layouts apart: those of dimensions larger than 1."""
    return tuple(step for size, step in zip(shape, stride, strict=True) if size > 1)


def usual_strides(shape: Sequence[int]) -> list[Stride]:
    """Return the strides of rows first, and those of columns first or channels last."""
    rows = list(range(len(shape)))
    other = [1, 0] if len(shape) == 2 else [0, *rows[2:], 1]
    return [stride_of(shape, rows), stride_of(shape, other)]


def dense_strides(shape: Sequence[int]) -> Iterator[Stride]:
    """Yield the strides of memory without gaps for each order of the dimensions."""
    dimensions = range(len(shape))
    orders = permutations(dimensions) if len(shape) <= MOST_DIMENSIONS else [tuple(dimensions)]
    return (stride_of(shape, order) for order in orders)


def stride_of(shape: Sequence[int], order: Sequence[int]) -> Stride:
    """Return the strides of memory without gaps.

    Args:
        order: the dimensions, from the outermost to the innermost.
    """
    stride, step = [0] * len(shape), 1
    for dimension in reversed(order):
        stride[dimension] = step
        step *= shape[dimension]
    return tuple(stride)


def dense_stride(parameter: Tensor) -> Stride:
    """Return the strides by which DDP lays out the gradient of a parameter.

    They are those of the parameter, unless they leave gaps or overlap.
    """
    stride = parameter.stride()
    if torch.empty_like(parameter, device="meta").stride() == stride:
        return stride
    return stride_of(parameter.shape, range(len(stride)))
