"""Bits in memory: words at any address, little-endian on every machine.

numba has no word for these; each is one instruction or two.
"""

import sys
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types

from gradsieve.compiled import call

intrinsic: Any = numba.extending.intrinsic
"""Without its types, in which the compiler's own first argument counts."""
INT1 = ir.IntType(1)
INT8 = ir.IntType(8)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)


def little_endian(builder: ir.IRBuilder, word: ir.Value) -> ir.Value:
    return word if sys.byteorder == "little" else call(builder, "llvm.bswap.i64", INT64, [word])


@intrinsic
def load_word(typing: Any, address: Any) -> Any:
    """The 64 bits at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(builder.inttoptr(args[0], INT64.as_pointer()), align=1)
        return little_endian(builder, word)

    return types.uint64(types.int64), codegen


@intrinsic
def store_word(typing: Any, address: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INT64.as_pointer())
        builder.store(little_endian(builder, args[1]), pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), codegen


@intrinsic
def store_byte(typing: Any, address: Any, word: Any) -> Any:
    """Store the lowest eight bits of a word."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INT8.as_pointer())
        builder.store(builder.trunc(args[1], INT8), pointer)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), codegen


@intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """The number of the lowest bit that is set; undefined for 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.cttz.i64", INT64, [args[0], INT1(1)])

    return types.int64(types.uint64), codegen


@intrinsic
def bit_length(typing: Any, number: Any) -> Any:
    """Bits of a number that is not negative; 0 has none."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = call(builder, "llvm.ctlz.i64", INT64, [args[0], INT1(0)])
        return builder.sub(INT64(64), zeros)

    return types.int64(types.int64), codegen


@intrinsic
def sign_bits(typing: Any, address: Any) -> Any:
    """The signs of the eight float32 at an address, a bit each."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.VectorType(INT32, 8)
        vector = builder.load(builder.inttoptr(args[0], lanes.as_pointer()), align=4)
        negative = builder.icmp_signed("<", vector, ir.Constant(lanes, [0] * 8))
        signs = builder.bitcast(negative, INT8)
        if sys.byteorder == "big":
            # There the first lane is the highest bit.
            signs = call(builder, "llvm.bitreverse.i8", INT8, [signs])
        return builder.zext(signs, INT64)

    return types.uint64(types.int64), codegen
