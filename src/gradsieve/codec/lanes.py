"""Sums of float32 in a fixed order that runs in vector registers.

If the compiler may choose the order of a sum, its last bits differ between processors, and between
a process that compiles and one that loads compiled code. Here number i of a tile is added to lane
i modulo LANES, whatever the width of the processor's vectors, and the lanes are added up in order.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from gradsieve.runtime.compiled import call, compiled, intrinsic

LANES = 16
TILE = 1024
"""The numbers that are summed in float32. Sums of tiles are added in float64."""
ZERO = np.float32(0)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
DOUBLE = ir.DoubleType()
INT64 = ir.IntType(64)


@intrinsic
def sum_lanes(typing: Any, address: Any, length: Any) -> Any:
    """Return the sum of `length` float32 at an address, as float64.

    length: a multiple of LANES.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, length = args
        numbers = builder.inttoptr(address, ir.FloatType().as_pointer())
        sums = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * LANES))
        with cgutils.for_range_slice(builder, INT64(0), length, INT64(LANES), inc=True) as (at, _):
            row = builder.bitcast(builder.gep(numbers, [at]), FLOATS.as_pointer())
            more = builder.load(row, align=4)
            builder.store(builder.fadd(builder.load(sums), more), sums)
        lanes = builder.fpext(builder.load(sums), ir.VectorType(DOUBLE, LANES))
        # The intrinsic adds one lane after the other unless a flag allows another order.
        name = f"llvm.vector.reduce.fadd.v{LANES}f64"
        return call(builder, name, DOUBLE, [DOUBLE(0.0), lanes])

    return types.float64(types.int64, types.int64), codegen


@compiled
def tile_sum(terms, count):  # type: ignore[no-untyped-def]
    """Return the sum of the first `count` of float32 [TILE], as float64; overwrite the others."""
    whole = (count + LANES - 1) // LANES * LANES
    terms[count:whole] = ZERO
    return sum_lanes(terms.ctypes.data, whole)
