"""Compile for the CPU, with a cache on disk where there is a place for it."""

from collections.abc import Callable, Sequence
from typing import Any

import numba.extending
from llvmlite import ir
from numba import njit
from numba.core import cgutils

intrinsic: Any = numba.extending.intrinsic
"""Without its types, in which the compiler's own first argument counts."""


def compiled(function: Callable[..., Any]) -> Any:
    """numba's njit without the GIL; the cache lies beside the function's file or in the home.

    Where neither can be written (a read-only container) every process compiles anew.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name; llvmlite knows no vector suffixes."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, args)
