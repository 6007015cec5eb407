"""The frame of one parameter: the public `encode` and `decode`."""

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
    """The frame of one parameter's survivors.

    Args:
        indices: int32 [survivors], ascending, each in 0..numel - 1.
        values: float32 [survivors], magnitudes of `threshold` or more.
        numel: elements of the parameter.
        threshold: the dead zone of "levels"; else for the receiver's information.
        mode: "float32" sends values exactly, "bfloat16" rounded, "levels" quantized with a step
            and reconstruction points chosen for the values. NaN or an infinite value makes any
            mode exact.
        row: elements of a row or filter of the parameter, which survivors cluster in; 0 where it
            has none or they are not known: any runs of 128 elements are then tried.
        residual: contiguous float32 with `numel` elements; its elements at `indices` are set to
            what the frame does not carry of the values.

    Returns:
        The frame, uint8 on the CPU.

    Raises:
        TypeError: `indices` or `values` are no tensors.
        ValueError: the arguments do not make a frame that decodes.
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
    fits = residual.dtype is torch.float32 and residual.numel() == numel
    if not fits or not residual.is_contiguous() or residual.device.type != "cpu":
        raise ValueError(
            f"the residual must be contiguous torch.float32 with {numel} elements on the CPU, got "
            f"{residual.dtype} {list(residual.shape)} on {residual.device}"
        )
    return cast(NDArray[np.float32], residual.detach().view(-1).numpy())


def decode(frame: Tensor) -> tuple[Tensor, Tensor]:
    """The survivors in a frame of one parameter: indices (int32) and values (float32).

    Raises:
        FrameError: the frame is damaged, or holds another number of parameters than one.
    """
    sections = decode_frame(frame).sections
    if len(sections) != 1:
        refuse("sections", f"{len(sections)}, where decode takes one parameter")
    indices, values = sections[0].survivors("section 0")
    return torch.from_numpy(indices), torch.from_numpy(values)
