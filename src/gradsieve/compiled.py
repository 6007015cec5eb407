"""Compile for the CPU, with a cache on disk where there is a place for it."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """numba's njit without the GIL; the cache lies beside the function's file or in the home.

    Where neither can be written (a read-only container) every process compiles anew.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)
