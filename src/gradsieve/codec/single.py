"""`encode` and `decode`: the public functions that write and read the frame of one parameter."""

import math
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.codec.codings import VALUES, Values
from gradsieve.codec.errors import refuse
from gradsieve.codec.frame import decode_frame, encode_frame
from gradsieve.codec.sections import pruned_section

LARGEST_FLOAT = float(np.finfo(np.float32).max)


def encode(
    indices: Tensor,
    values: Tensor,
    numel: int,
    *,
    threshold: float = 0.0,
    mode: Values = "levels",
    row: int = 0,
    residual: Tensor | None = None,
) -> Tensor:
    """Write one parameter's survivors into a frame.

    The bytes are described in docs/wire-format.md.

    Args:
        indices: int32 [survivors], on any device, ascending, each in 0 .. numel - 1.
        values: float32 [survivors], on any device, with magnitudes of `threshold` or more, in the
            gradient's own units.
        numel: the number of elements of the parameter, below 2^31.
        threshold: the threshold that the survivors have passed, in the units of `values`. With
            "levels" it is the dead zone of the quantizer; else it only informs the receiver.
        mode: how values travel. "float32" sends them exactly, and "bfloat16" rounds them. "levels"
            quantizes them, with a step and reconstruction points chosen for these values. All modes
            send float32 if some value is NaN or infinite, and "levels" also does where its levels
            might leave the range of float32.
        row: the number of elements of a row or filter of the parameter, since survivors cluster in
            these. With 0 blocks of 128 elements and more are tried instead.
        residual: contiguous float32 with `numel` elements on the CPU, for error feedback: its
            elements at `indices` are set to what the frame does not carry of the values.

    Returns:
        The frame, uint8 [bytes] on the CPU.

    Raises:
        TypeError: `indices` or `values` is no tensor.
        ValueError: a dtype, shape or number is not as described above. The message names it.

    Example:
        Select the survivors of a gradient, and send them. The residual keeps all that the frame
        does not carry: the elements below the threshold, and the rounding of the others.

        >>> import torch
        >>> import gradsieve as gs
        >>> gradient, residual = torch.tensor([0.1, -2.0, 0.3, 3.14159]), torch.zeros(4)
        >>> indices, values, _ = gs.select(gradient, residual, 1.0)
        >>> frame = gs.encode(
        ...     indices, values, 4, threshold=1.0, mode="bfloat16", residual=residual
        ... )
        >>> places, arrived = gs.decode(frame)
        >>> places.tolist(), arrived.tolist()
        ([1, 3], [-2.0, 3.140625])
        >>> received = torch.zeros(4).index_copy(0, places.long(), arrived)
        >>> torch.equal(received + residual, gradient)
        True
    """
    for name, tensor in (("indices", indices), ("values", values)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if indices.dtype is not torch.int32 or values.dtype is not torch.float32:
        raise ValueError(
            f"indices must be torch.int32 and values torch.float32, got {indices.dtype} and "
            f"{values.dtype}"
        )
    positions = indices.detach().cpu().contiguous().numpy()
    numbers = values.detach().cpu().contiguous().numpy()
    check(positions, numbers, numel, threshold, mode, row)
    left = None
    if residual is not None:
        left = checked_residual(residual, numel)
        if np.shares_memory(left, numbers):
            numbers = numbers.copy()
        left[positions] = 0
    finite = bool(np.isfinite(numbers).all())
    section = pruned_section(
        positions, numbers, numel, threshold, mode, row=row, finite=finite, residual=left
    )
    return encode_frame([section], nonfinite=not finite)


def check(
    positions: NDArray[Any],
    numbers: NDArray[Any],
    numel: int,
    threshold: float,
    mode: str,
    row: int,
) -> None:
    """Raise ValueError where the arguments of `encode` do not make a frame that decodes."""
    if not (isinstance(numel, int) and isinstance(row, int)):
        raise ValueError(f"numel and row must be whole numbers, got {numel!r} and {row!r}")
    if positions.shape != numbers.shape or positions.ndim != 1:
        raise ValueError(
            "indices and values must have one dimension and one length, got "
            f"{list(positions.shape)} and {list(numbers.shape)}"
        )
    if not 0 <= numel < 2**31:
        raise ValueError(f"numel must be 0 or more and below 2^31, got {numel}")
    inside = (positions >= 0) & (positions < numel)
    inside[1:] &= positions[1:] > positions[:-1]
    if not inside.all():
        place = int(inside.argmin())
        raise ValueError(
            f"indices must ascend strictly within 0..{numel - 1}; number {place} is "
            f"{positions[place]}" + (f" behind {positions[place - 1]}" if place else "")
        )
    if mode not in VALUES:
        raise ValueError(f"mode must be one of {', '.join(VALUES)}, got {mode!r}")
    if not (0 <= threshold <= LARGEST_FLOAT or threshold == math.inf):
        raise ValueError(f"the threshold must be 0 or more and a float32, got {threshold}")
    if (np.abs(numbers) < np.float32(threshold)).any():
        raise ValueError(
            f"every value must have a magnitude of the threshold {threshold} or more; the "
            f"smallest is {np.abs(numbers).min()}"
        )
    if row < 0:
        raise ValueError(f"row must be 0 or more, got {row}")


def checked_residual(residual: Tensor, numel: int) -> NDArray[np.float32]:
    """Return the residual as a flat array that shares its memory, or raise ValueError."""
    fits = residual.dtype is torch.float32 and residual.numel() == numel
    if not fits or not residual.is_contiguous() or residual.device.type != "cpu":
        raise ValueError(
            f"the residual must be contiguous torch.float32 with {numel} elements on the CPU, got "
            f"{residual.dtype} {list(residual.shape)} on {residual.device}"
        )
    return cast(NDArray[np.float32], residual.detach().view(-1).numpy())


def decode(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Read the survivors of a frame of one parameter.

    Args:
        frame: uint8 [bytes] on the CPU, as `encode` returns it. It is not changed.

    Returns:
        indices (int32 [survivors], ascending) and values (float32 [survivors]), new tensors on the
        CPU. What the values are after rounding or quantizing is the same on every machine.

    Raises:
        FrameError: the frame is damaged, or holds another number of parameters than one. The
            message names the field of docs/wire-format.md.
        TypeError: `frame` is no tensor. `torch.frombuffer` makes one of bytes.

    Example:
        >>> import torch
        >>> import gradsieve as gs
        >>> indices = torch.tensor([0, 7], dtype=torch.int32)
        >>> frame = gs.encode(indices, torch.tensor([0.5, -0.25]), 10, mode="float32")
        >>> gs.decode(frame)
        (tensor([0, 7], dtype=torch.int32), tensor([ 0.5000, -0.2500]))
        >>> frame[-1] ^= 255
        >>> gs.decode(frame)
        Traceback (most recent call last):
            ...
        gradsieve.codec.errors.FrameError: frame field crc32: ...
    """
    sections = decode_frame(frame).sections
    if len(sections) != 1:
        refuse("sections", f"{len(sections)}, where decode takes one parameter")
    indices, values = sections[0].survivors("section 0")
    return torch.from_numpy(indices), torch.from_numpy(values)
