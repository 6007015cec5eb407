"""Intrinsics that read and write bits at any address, little-endian on every machine.

numba has no functions for these. Each compiles to one instruction or two.
"""

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from gradsieve.runtime.compiled import call, intrinsic

STORE_REACH = 8
"""The bytes that `store_word` writes, even where only the first few are wanted."""
INT1 = ir.IntType(1)
INT8 = ir.IntType(8)
INT16 = ir.IntType(16)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
SHORT_LANES = ir.VectorType(INT16, 8)
LANES = ir.VectorType(INT32, 8)


def little_endian(builder: ir.IRBuilder, word: ir.Value) -> ir.Value:
    """Convert a word between this machine's byte order and little-endian."""
    return word if sys.byteorder == "little" else call(builder, "llvm.bswap.i64", INT64, [word])


@intrinsic
def load_word(typing: Any, address: Any) -> Any:
    """Return the 64 bits at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(builder.inttoptr(args[0], INT64.as_pointer()), align=1)
        return little_endian(builder, word)

    return types.uint64(types.int64), codegen


@intrinsic
def store_word(typing: Any, address: Any, word: Any) -> Any:
    """Store 64 bits at an address."""

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
    """Return the number of the lowest bit that is set, or 64 for 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.cttz.i64", INT64, [args[0], INT1(0)])

    return types.int64(types.uint64), codegen


@intrinsic
def ones(typing: Any, word: Any) -> Any:
    """Return the number of bits that are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.ctpop.i64", INT64, [args[0]])

    return types.int64(types.uint64), codegen


@intrinsic
def store_ones(typing: Any, address: Any, word: Any, base: Any) -> Any:
    """Store base + the number of each bit that is set in a word's lowest eight, as uint32.

    Eight numbers are always stored. Those behind the last set bit are meaningless.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, word, base = args
        byte = builder.and_(word, INT64(255))
        row = builder.gep(places_table(builder), [INT32(0), byte], inbounds=True)
        places = builder.zext(builder.load(row), LANES)
        bases = splat(builder, builder.trunc(base, INT32), LANES)
        pointer = builder.inttoptr(address, LANES.as_pointer())
        builder.store(builder.add(places, bases), pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64, types.int64), codegen


def places_table(builder: ir.IRBuilder) -> ir.Value:
    """Return a table of 256 rows: the numbers of the bits set in each byte, filled with zeros."""
    row = ir.VectorType(INT8, 8)
    rows = []
    for byte in range(256):
        places = [bit for bit in range(8) if byte >> bit & 1]
        rows.append(ir.Constant(row, places + [0] * (8 - len(places))))
    table = ir.Constant(ir.ArrayType(row, 256), rows)
    return cgutils.global_constant(builder, "gradsieve_places", table)


@intrinsic
def float_bits(typing: Any, number: Any) -> Any:
    """Return the bits of a float32 as uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], INT32), INT64)

    return types.uint64(types.float32), codegen


@intrinsic
def load_float(typing: Any, address: Any) -> Any:
    """Return the float32 at an address. Eight bytes there must be readable."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(builder.inttoptr(args[0], INT64.as_pointer()), align=1)
        bits = builder.trunc(little_endian(builder, word), INT32)
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int64), codegen


@intrinsic
def bit_length(typing: Any, number: Any) -> Any:
    """Return the number of bits of a number that is not negative; 0 has none."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = call(builder, "llvm.ctlz.i64", INT64, [args[0], INT1(0)])
        return builder.sub(INT64(64), zeros)

    return types.int64(types.int64), codegen


@intrinsic
def at_least(typing: Any, address: Any, lowest: Any) -> Any:
    """Return a bit for each of the eight uint16 at an address, set where it is `lowest` or more.

    The numbers, and `lowest`, must be below 2^15.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = builder.load(builder.inttoptr(args[0], SHORT_LANES.as_pointer()), align=2)
        bounds = splat(builder, builder.trunc(args[1], INT16), SHORT_LANES)
        members = builder.icmp_signed(">=", vector, bounds)
        return builder.zext(first_lowest(builder, builder.bitcast(members, INT8)), INT64)

    return types.uint64(types.int64, types.int64), codegen


@intrinsic
def sign_bits(typing: Any, address: Any) -> Any:
    """Return a bit for each of the eight float32 at an address, set where it is negative."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = builder.load(builder.inttoptr(args[0], LANES.as_pointer()), align=4)
        negative = builder.icmp_signed("<", vector, ir.Constant(LANES, [0] * 8))
        return builder.zext(first_lowest(builder, builder.bitcast(negative, INT8)), INT64)

    return types.uint64(types.int64), codegen


@intrinsic
def set_sign_bits(typing: Any, address: Any, word: Any) -> Any:
    """Set the sign of those of the eight float32 at an address whose bit in a word is set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], LANES.as_pointer())
        byte = first_lowest(builder, builder.trunc(args[1], INT8))
        negative = builder.bitcast(byte, ir.VectorType(INT1, 8))
        signs = builder.shl(builder.zext(negative, LANES), ir.Constant(LANES, [31] * 8))
        builder.store(builder.or_(builder.load(pointer, align=4), signs), pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), codegen


def splat(builder: ir.IRBuilder, number: ir.Value, lanes: ir.VectorType) -> ir.Value:
    """Return a vector that has the number in each lane."""
    first = builder.insert_element(ir.Constant(lanes, ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(INT32, 8), [0] * 8))


def first_lowest(builder: ir.IRBuilder, byte: ir.Value) -> ir.Value:
    """Convert between a mask of eight lanes and a byte whose lowest bit is the first lane."""
    if sys.byteorder == "little":
        return byte
    return call(builder, "llvm.bitreverse.i8", INT8, [byte])
