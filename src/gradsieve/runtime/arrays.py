"""Check arrays before compiled loops get them, which look at no dtype, size or stride."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

UINT8, INT16, INT32 = np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.int32)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def require_array(
    name: str, array: NDArray[Any], dtype: np.dtype[Any], size: int | None = None
) -> None:
    """Require an array of one dimension, contiguous and aligned.

    Args:
        name: the array's name in error messages.
        size: the number of elements; any if None.

    Raises:
        TypeError: it is no array or has another dtype.
        ValueError: it has another number of dimensions or elements, or gaps.
    """
    require_dtype(name, array, dtype)
    flags = array.flags
    if array.ndim != 1 or not (flags.c_contiguous and flags.aligned):
        raise ValueError(
            f"{name} must have one dimension and be contiguous, got shape {list(array.shape)} with "
            f"strides of {list(array.strides)} bytes"
        )
    if size is not None and array.size != size:
        raise ValueError(f"{name} must have {size} elements, got {array.size}")


def require_target(
    name: str, array: NDArray[Any], dtype: np.dtype[Any], size: int | None = None
) -> None:
    """Require what `require_array` requires, and that the array can be written to."""
    require_array(name, array, dtype, size)
    if not array.flags.writeable:
        raise ValueError(f"{name} is written to and must not be read-only")


def require_matrix(
    name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, int]
) -> None:
    """Require an array of two dimensions, contiguous and aligned; it raises as `require_array`.

    Args:
        shape: -1 stands for any size.
    """
    require_dtype(name, array, dtype)
    fits = array.ndim == 2 and all(
        want in (-1, size) for want, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(array.shape)}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{name} must be contiguous, got strides of {list(array.strides)} bytes")


def require_dtype(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array of {dtype}, got {type(array).__name__}")
    if array.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
