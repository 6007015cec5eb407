"""Compile functions for the CPU and keep their machine code on disk."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

import numba.extending
from llvmlite import ir
from numba import njit
from numba.core import cgutils

from gradsieve.errors import SieveError
from gradsieve.runtime.machine_code import MachineCode

intrinsic: Any = numba.extending.intrinsic
"""numba's decorator, untyped: its types count an argument that the compiler passes itself."""


def compiled(function: Callable[..., Any]) -> Any:
    """Compile with numba's ``njit``, without the GIL and with `MachineCode` as the cache.

    Where NUMBA_DISABLE_JIT is set, the function that is returned raises SieveError.
    """
    settings: Any = numba.config
    if settings.DISABLE_JIT:
        return refused(function)
    dispatcher: Any = njit(nogil=True)(function)
    dispatcher._cache = MachineCode(function)
    return dispatcher


def refused(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    """Return a function that says why it cannot run, in the place of one that must be compiled."""

    @wraps(function)
    def refuse(*args: Any, **keywords: Any) -> NoReturn:
        raise SieveError(
            "NUMBA_DISABLE_JIT is set, and gradsieve's kernels work on memory in ways that only "
            "numba's compiler knows; unset it to use gradsieve"
        )

    return refuse


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name.

    llvmlite's own function for this cannot write the suffixes of vector types.
    """
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, args)
