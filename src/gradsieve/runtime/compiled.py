"""Compile for the CPU, with the machine code kept on disk where there is a place for it."""

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
"""Without its types, in which the compiler's own first argument counts."""


def compiled(function: Callable[..., Any]) -> Any:
    """numba's njit without the GIL, with `MachineCode` for its cache."""
    settings: Any = numba.config
    if settings.DISABLE_JIT:
        return refused(function)
    dispatcher: Any = njit(nogil=True)(function)
    dispatcher._cache = MachineCode(function)
    return dispatcher


def refused(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    """What stands for a function where numba must not compile."""

    @wraps(function)
    def refuse(*args: Any, **keywords: Any) -> NoReturn:
        raise SieveError(
            "NUMBA_DISABLE_JIT is set, and gradsieve's kernels work on memory in ways that only "
            "numba's compiler knows; unset it to use gradsieve"
        )

    return refuse


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name; llvmlite knows no vector suffixes."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, args)
