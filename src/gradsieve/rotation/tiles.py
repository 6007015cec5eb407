"""Products of dense matrices, a tile of the result at a time in registers.

A tile is read, grows by one term of each of its sums after the other, and is written back. Each
product is rounded before it is added, and no sum is divided, so that the bits are those of the sums
in their order.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from gradsieve.runtime.compiled import compiled, intrinsic

ROWS = 6
"""The rows of a tile. With a row of factors they fill the registers of a processor with AVX2."""
ROW_BYTES = 64
AT_ONCE = 256
"""The terms of each sum that are added before the next tile. Their factors fit the L1 cache."""
INT32, INT64 = ir.IntType(32), ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def grow_tile(
    typing: Any,
    like: Any,
    factors: Any,
    factor_row: Any,
    factor_step: Any,
    others: Any,
    target: Any,
    target_row: Any,
    count: Any,
) -> Any:
    """Compute target[r] += Σ factors[r, k] · others[k] for ROWS rows of ROW_BYTES, k in order.

    like: an array of the dtype. All others are int64: the addresses of the first factor, of
    `others` and of the target, and the strides in bytes of a row of factors, of a term and of a row
    of the target. `others` are `count` rows without gaps, 1 or more.
    """
    number, width = (ir.DoubleType(), 8) if like.dtype is types.float64 else (ir.FloatType(), 4)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit_tile(builder, number, width, args[1:])
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 7), codegen


def emit_tile(builder: Any, number: ir.Type, width: int, args: Any) -> None:
    factors, factor_row, factor_step, others, target, target_row, count = args
    lanes = ROW_BYTES // width
    row = ir.VectorType(number, lanes)

    def load(address: Any, kind: ir.Type) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=width)

    def splat(value: Any) -> Any:
        first = builder.insert_element(ir.Constant(row, ir.Undefined), value, INT32(0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(INT32, lanes), None))

    places = [builder.add(target, builder.mul(target_row, INT64(r))) for r in range(ROWS)]
    ahead = [builder.mul(factor_row, INT64(r)) for r in range(ROWS)]
    before = [load(place, row) for place in places]
    entry = builder.block
    loop, done = (builder.append_basic_block(name) for name in ("terms", "done"))
    builder.branch(loop)
    builder.position_at_end(loop)
    term, factor, other = (builder.phi(INT64) for _ in range(3))
    sums = [builder.phi(row) for _ in range(ROWS)]
    added = load(other, row)
    grown = [
        builder.fadd(total, builder.fmul(splat(load(builder.add(factor, far), number)), added))
        for total, far in zip(sums, ahead, strict=True)
    ]
    following = [
        builder.add(term, INT64(1)),
        builder.add(factor, factor_step),
        builder.add(other, INT64(ROW_BYTES)),
    ]
    builder.cbranch(builder.icmp_signed("<", following[0], count), loop, done)
    firsts = [INT64(0), factors, others, *before]
    phis = [term, factor, other, *sums]
    for phi, first, later in zip(phis, firsts, [*following, *grown], strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(later, loop)
    builder.position_at_end(done)
    for place, total in zip(places, grown, strict=True):
        builder.store(total, builder.inttoptr(place, row.as_pointer()), align=width)


@compiled
def add_tiles(target, factors, factor_row, factor_step, others):  # type: ignore[no-untyped-def]
    """Compute target[i] += Σ factors[i, k] · others[k], k in order.

    target: [M, N], at least one tile; others: [K, N]. Both are contiguous and of one dtype.
    factors: the address of factors[0, 0]; factor_row and factor_step: the bytes from a row of
    factors to the next, and from a term to the next.
    """
    width = target.itemsize
    lanes = ROW_BYTES // width
    rows, columns = target.shape
    panel = np.empty((min(AT_ONCE, others.shape[0]), lanes), target.dtype)
    rest = np.empty((ROWS, lanes), target.dtype)
    for k in range(0, others.shape[0], AT_ONCE):
        count = min(AT_ONCE, others.shape[0] - k)
        for j in range(0, columns, lanes):
            # The last tiles reach back into others, and only what is new of them is kept.
            column = min(j, columns - lanes)
            for term in range(count):
                for lane in range(lanes):
                    panel[term, lane] = others[k + term, column + lane]
            for i in range(0, rows, ROWS):
                row = min(i, rows - ROWS)
                at = factors + row * factor_row + k * factor_step
                if row == i and column == j:
                    place = target.ctypes.data + (row * columns + column) * width
                    stride = columns * width
                else:
                    rest[:] = target[row : row + ROWS, column : column + lanes]
                    place, stride = rest.ctypes.data, ROW_BYTES
                grow_tile(
                    target, at, factor_row, factor_step, panel.ctypes.data, place, stride, count
                )
                if not (row == i and column == j):
                    target[i : row + ROWS, j : column + lanes] = rest[i - row :, j - column :]


@compiled
def fits(target):  # type: ignore[no-untyped-def]
    """Return whether a matrix has a tile."""
    return target.shape[0] >= ROWS and target.shape[1] >= ROW_BYTES // target.itemsize


@compiled
def share_of_nonzero(matrix):  # type: ignore[no-untyped-def]
    """Return the share of elements that are not 0; 0 for an empty matrix."""
    count = 0
    for i in range(matrix.shape[0]):
        for number in matrix[i]:
            count += number != 0
    return count / max(matrix.size, 1)


@compiled
def all_finite(matrix):  # type: ignore[no-untyped-def]
    """Return whether no element is NaN or infinite."""
    bad = 0
    for i in range(matrix.shape[0]):
        for number in matrix[i]:
            bad += number - number != 0
    return bad == 0
