"""Compile for the CPU, with a cache on disk where there is a place for it."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """numba's njit without the GIL; the cache lies beside the function's file or in the home.

    Where neither can be written (a read-only container) every process compiles anew.
    """
    return _compiled(function)


def compiled_with_free_order(function: Callable[..., Any]) -> Any:
    """As `compiled`; sums may be made in any order, so that they run in vector registers."""
    return _compiled(function, fastmath={"reassoc", "nsz"})


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:
        return njit(nogil=True, **options)(function)
