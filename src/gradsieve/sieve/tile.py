"""The inner loop of the CPU kernel over one tile, emitted as vector instructions.

numba vectorizes plain loops, but it cannot express "pack the lanes that passed". A scalar loop with
a branch, or with a running output position, is four to ten times slower than memory. This module
emits that one loop as LLVM vector code for the host's own vector unit. On AVX2 lanes are packed
with a permutation that is looked up by the lane mask, on all others with LLVM's compress operation,
which is one instruction on AVX-512. Sums have the same bits on all processors.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features

from gradsieve.runtime.compiled import call, intrinsic

FLOAT = ir.FloatType()
INT8 = ir.IntType(8)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
LARGEST_FLOAT = float(np.finfo(np.float32).max)
DOUBLE = ir.DoubleType()
SUMS = 7
"""The sums of a tile: signed elements, unsent magnitudes, unsent squares, sent magnitudes, sent
squares, the gradient's squares; then the largest magnitude, and after it the non-finite count."""
GRADIENT_SQUARES = SUMS - 2
LARGEST = SUMS - 1
TOTALS = SUMS + 1


def features() -> set[str]:
    """Return the features of the processor that code is compiled for, by LLVM's names."""
    settings: Any = numba.config
    named = settings.CPU_FEATURES
    if named is None:
        named = get_host_cpu_features()
    return {name[1:] for name in named.split(",") if name.startswith("+")}


LANES = 8
"""The elements of a vector. Element i is summed in lane i modulo 8 on all processors, so that sums
are the same. Vectors of 16 were a sixth faster where 30 % survive, and elsewhere no faster."""
HAS_PERMUTE = {"avx2"} == features() & {"avx2", "avx512vl"}
BLOCK = 4 * LANES
"""The elements of an iteration. Tiles are multiples of it."""
LINE = 16
"""The float32 in a cache line."""
PREFETCH = 512
"""How many elements ahead of the loop memory is fetched into the cache."""
TILE = 4096
"""The elements that are summed in float32. They fit the L1 cache. Sums of tiles are float64."""
PADDING = BLOCK
"""The room behind the survivors, in elements, since the kernel writes whole vectors."""
DENSE, CLEAR, STREAM, VARIANTS = 1, 2, 4, 8
"""Flags, and the number of their combinations. DENSE packs every vector, without testing first
whether it has survivors. CLEAR sets the gradient to 0. STREAM writes the new residual past the
caches, in whole aligned vectors."""
STREAM_ALIGNMENT = 64

VECTOR = ir.VectorType(FLOAT, LANES)
DOUBLES = ir.VectorType(DOUBLE, LANES)
INDICES = ir.VectorType(INT32, LANES)
MASK_BITS = ir.IntType(LANES)


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector constant that has the value in each lane."""
    return ir.Constant(kind, [value] * kind.count)


def broadcast(builder: ir.IRBuilder, scalar: ir.Value, kind: ir.VectorType) -> ir.Value:
    """Return a vector that has the scalar in each lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INT32(0))
    lanes = constant(ir.VectorType(INT32, kind.count), 0)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), lanes)


def load(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
    """Load a vector of 4-byte elements at an offset of elements."""
    address = builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())
    return builder.load(address, align=4)


def store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, offset: ir.Value) -> None:
    """Store a vector of 4-byte elements at an offset of elements."""
    address = builder.bitcast(builder.gep(pointer, [offset]), value.type.as_pointer())
    builder.store(value, address, align=4)


def permutations() -> list[list[int]]:
    """Return a row for each mask of 8 lanes: the lanes that are set, in order, then zeros."""
    rows = []
    for mask in range(256):
        lanes = [lane for lane in range(8) if mask >> lane & 1]
        rows.append(lanes + [0] * (8 - len(lanes)))
    return rows


def permutation_table(builder: ir.IRBuilder) -> ir.Value:
    """Return `permutations` as a constant of the module that is built."""
    row = ir.VectorType(INT8, 8)
    table = ir.Constant(ir.ArrayType(row, 256), [ir.Constant(row, r) for r in permutations()])
    return cgutils.global_constant(builder, "gradsieve_permutations", table)


def pack(builder: ir.IRBuilder, values: ir.Value, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Move the masked lanes to the front. Return their values and their lane numbers."""
    if HAS_PERMUTE:
        bits = builder.zext(builder.bitcast(mask, MASK_BITS), INT32)
        row = builder.gep(permutation_table(builder), [INT32(0), bits], inbounds=True)
        lanes = builder.zext(builder.load(row), INDICES)
        packed = call(
            builder, "llvm.x86.avx2.permd", INDICES, [builder.bitcast(values, INDICES), lanes]
        )
        return builder.bitcast(packed, VECTOR), lanes
    numbers = ir.Constant(INDICES, list(range(LANES)))
    name = f"llvm.experimental.vector.compress.v{LANES}"
    undefined = ir.Constant(VECTOR, ir.Undefined), ir.Constant(INDICES, ir.Undefined)
    return (
        call(builder, name + "f32", VECTOR, [values, mask, undefined[0]]),
        call(builder, name + "i32", INDICES, [numbers, mask, undefined[1]]),
    )


class TileLoop:
    """An emitter of the loop over one tile, used once while the intrinsic is compiled."""

    def __init__(self, builder: ir.IRBuilder, args: Sequence[ir.Value], flags: int) -> None:
        self.dense, self.clear, self.stream = (
            bool(flags & DENSE),
            bool(flags & CLEAR),
            flags & STREAM,
        )
        gradient, residual, into, self.length, threshold, indices, values, self.first, sums = args
        self.builder = builder
        floats, ints = FLOAT.as_pointer(), INT32.as_pointer()
        self.gradient = builder.inttoptr(gradient, floats)
        self.residual = builder.inttoptr(residual, floats)
        self.into = builder.inttoptr(into, floats)
        self.indices = builder.inttoptr(indices, ints)
        self.values = builder.inttoptr(values, floats)
        self.totals = builder.inttoptr(sums, DOUBLE.as_pointer())
        self.zero = constant(VECTOR, 0.0)
        self.limit = constant(VECTOR, LARGEST_FLOAT)
        self.threshold = self.at_most_finite(broadcast(builder, threshold, VECTOR))
        self.survivors = cgutils.alloca_once_value(builder, INT64(0))
        self.nonfinite = cgutils.alloca_once_value(builder, constant(INDICES, 0))
        self.sums = [cgutils.alloca_once_value(builder, self.zero) for _ in range(SUMS)]

    def emit(self) -> ir.Value:
        """Emit the loop, and return the number of survivors."""
        builder = self.builder
        vectors = BLOCK // LANES if self.dense else LINE // LANES
        step = INT64(vectors * LANES)
        with cgutils.for_range_slice(builder, INT64(0), self.length, step, inc=True) as (at, _):
            for line in range(0, vectors * LANES, LINE):
                self.prefetch(builder.add(at, INT64(line + PREFETCH)))
            for vector in range(vectors):
                self.emit_vector(builder.add(at, INT64(vector * LANES)))
        self.add_totals()
        return builder.load(self.survivors)

    def prefetch(self, offset: ir.Value) -> None:
        """Fetch a cache line of each input, because the hardware's own prefetch ends at a page."""
        builder = self.builder
        pointer = INT8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for array, write in ((self.gradient, 0), (self.residual, 1)):
            address = builder.bitcast(builder.gep(array, [offset]), pointer)
            builder.call(function, [address, INT32(write), INT32(3), INT32(1)])

    def emit_vector(self, offset: ir.Value) -> None:
        """Emit the code for one vector."""
        builder = self.builder
        before = load(builder, self.residual, offset, VECTOR)
        gradient = load(builder, self.gradient, offset, VECTOR)
        if self.clear:
            store(builder, self.zero, self.gradient, offset)
        self.add_square(gradient, self.sums[GRADIENT_SQUARES])
        accumulated = builder.fadd(gradient, before)
        passed = builder.fcmp_unordered(">", self.magnitude(accumulated), self.threshold)
        if self.dense:
            self.emit_survivors(offset, accumulated, before, passed)
            return
        bits = builder.bitcast(passed, MASK_BITS)
        any_passed = builder.icmp_unsigned("!=", bits, MASK_BITS(0))
        with builder.if_else(any_passed, likely=False) as (some, none):
            with some:
                self.emit_survivors(offset, accumulated, before, passed)
            with none:
                self.store_residual(accumulated, offset)
                self.add_any(accumulated)
                self.add_unsent(accumulated)

    def emit_survivors(
        self, offset: ir.Value, accumulated: ir.Value, before: ir.Value, passed: ir.Value
    ) -> None:
        """Emit the code for a vector that may have survivors."""
        builder = self.builder
        finite = builder.fcmp_ordered("<=", self.magnitude(accumulated), self.limit)
        # Elements that are not finite are sent, since training must see them, and keep residuals.
        kept = builder.select(finite, accumulated, before)
        sent = builder.and_(passed, finite)
        self.store_residual(builder.select(sent, self.zero, kept), offset)
        self.write_survivors(offset, accumulated, passed)
        infinite = builder.zext(builder.not_(finite), INDICES)
        builder.store(builder.add(builder.load(self.nonfinite), infinite), self.nonfinite)
        self.add_any(kept)
        self.add_unsent(builder.select(sent, self.zero, kept))
        self.add_sent(builder.select(sent, kept, self.zero))

    def store_residual(self, value: ir.Value, offset: ir.Value) -> None:
        builder = self.builder
        if not self.stream:
            store(builder, value, self.into, offset)
            return
        address = builder.bitcast(builder.gep(self.into, [offset]), value.type.as_pointer())
        written = builder.store(value, address, align=4 * LANES)
        written.set_metadata("nontemporal", builder.module.add_metadata([INT32(1)]))

    def write_survivors(self, offset: ir.Value, accumulated: ir.Value, passed: ir.Value) -> None:
        builder = self.builder
        values, lanes = pack(builder, accumulated, passed)
        at = builder.load(self.survivors)
        store(builder, values, self.values, at)
        base = builder.trunc(builder.add(self.first, offset), INT32)
        store(builder, builder.add(lanes, broadcast(builder, base, INDICES)), self.indices, at)
        bits = builder.bitcast(passed, MASK_BITS)
        count = call(builder, f"llvm.ctpop.i{LANES}", MASK_BITS, [bits])
        builder.store(builder.add(at, builder.zext(count, INT64)), self.survivors)

    def magnitude(self, value: ir.Value) -> ir.Value:
        return call(self.builder, f"llvm.fabs.v{LANES}f32", VECTOR, [value])

    def at_most_finite(self, value: ir.Value) -> ir.Value:
        """Return the value, or the largest float32 if it is infinite, which infinity exceeds."""
        below = self.builder.fcmp_ordered("<", value, self.limit)
        return self.builder.select(below, value, self.limit)

    def add_any(self, value: ir.Value) -> None:
        builder = self.builder
        signed, largest = self.sums[0], self.sums[LARGEST]
        self.add(signed, value)
        magnitude, before = self.magnitude(value), builder.load(largest)
        larger = builder.fcmp_ordered(">", magnitude, before)
        builder.store(builder.select(larger, magnitude, before), largest)

    def add_magnitude(self, value: ir.Value, magnitudes: ir.Value, squares: ir.Value) -> None:
        self.add(magnitudes, self.magnitude(value))
        self.add_square(value, squares)

    def add_square(self, value: ir.Value, squares: ir.Value) -> None:
        builder = self.builder
        square = [value, value, builder.load(squares)]
        builder.store(call(builder, f"llvm.fma.v{LANES}f32", VECTOR, square), squares)

    def add_unsent(self, value: ir.Value) -> None:
        self.add_magnitude(value, self.sums[1], self.sums[2])

    def add_sent(self, value: ir.Value) -> None:
        self.add_magnitude(value, self.sums[3], self.sums[4])

    def add(self, accumulator: ir.Value, value: ir.Value) -> None:
        self.builder.store(self.builder.fadd(self.builder.load(accumulator), value), accumulator)

    def add_totals(self) -> None:
        """Add the tile's float32 sums to the caller's float64 ones."""
        builder = self.builder
        for row, accumulator in enumerate(self.sums):
            lanes = builder.fpext(builder.load(accumulator), DOUBLES)
            total = builder.gep(self.totals, [INT64(row)])
            before = builder.load(total)
            if row == LARGEST:
                largest = call(builder, f"llvm.vector.reduce.fmax.v{LANES}f64", DOUBLE, [lanes])
                larger = builder.fcmp_ordered(">", largest, before)
                builder.store(builder.select(larger, largest, before), total)
            else:
                name = f"llvm.vector.reduce.fadd.v{LANES}f64"
                builder.store(call(builder, name, DOUBLE, [before, lanes]), total)
        total = builder.gep(self.totals, [INT64(SUMS)])
        name = f"llvm.vector.reduce.add.v{LANES}i32"
        nonfinite = call(builder, name, INT32, [builder.load(self.nonfinite)])
        nonfinite = builder.uitofp(nonfinite, DOUBLE)
        builder.store(builder.fadd(builder.load(total), nonfinite), total)


@intrinsic
def sieve_tile(  # type: ignore[no-untyped-def]
    typing, gradient, residual, into, length, threshold, indices, values, first, sums, flags
):
    """Sieve one tile, and return the number of survivors.

    gradient, residual, into: the addresses of the tile's first element, where `into` is where the
    new residual is written; length: a multiple of BLOCK; threshold: float32; indices, values: the
    addresses where survivors are written (int32, float32), with room for the tile and one vector
    more; first: the index of the tile's first element in the parameter; sums: the address of TOTALS
    float64, which are added to; flags: the sum of DENSE, CLEAR and STREAM, where wanted.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        survivors = cgutils.alloca_once(builder, INT64)
        behind = builder.append_basic_block("behind")
        unknown = builder.append_basic_block("unknown")
        switch = builder.switch(args[-1], unknown)
        for number in range(VARIANTS):
            block = builder.append_basic_block(f"flags{number}")
            switch.add_case(INT64(number), block)
            builder.position_at_end(block)
            builder.store(TileLoop(builder, args[:-1], number).emit(), survivors)
            builder.branch(behind)
        builder.position_at_end(unknown)
        builder.unreachable()
        builder.position_at_end(behind)
        return builder.load(survivors)

    address = number = types.int64
    return (
        types.int64(
            address,
            address,
            address,
            number,
            types.float32,
            address,
            address,
            number,
            address,
            number,
        ),
        codegen,
    )


@intrinsic
def wait_for_stores(typing):  # type: ignore[no-untyped-def]
    """Make what was written past the caches visible to other threads."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
