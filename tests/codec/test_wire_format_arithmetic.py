"""docs/wire-format.md says what levels by size and powers of two are: a decoder made from it."""

import struct

import numpy as np
import pytest
from test_wire_format import Bits, float32, read_counts, read_set

from gradsieve.codec import Grid, Kind, decode_frame, encode_frame, pruned_section, whole_section

PAYLOAD = 48


@pytest.mark.parametrize("share", [0.01, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(40, 70), (300, 9), (1, 2000)])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_levels_by_size_are_as_the_document_says(shape, share, spread):
    numbers = np.random.default_rng(int(100 * share) + shape[0])
    squares = [np.exp(spread * numbers.standard_normal(size)).astype(np.float32) for size in shape]
    grid = Grid.of_squares(*squares)
    values = numbers.laplace(size=shape) * np.sqrt(squares[0][:, None] * squares[1])
    values = values.astype(np.float32).reshape(-1)
    values[numbers.integers(values.size)] = 1e20
    threshold = np.float32(np.quantile(np.abs(values), 1 - share))
    indices = np.flatnonzero(np.abs(values) >= threshold).astype(np.int32)
    if indices.size < 32:
        indices = np.flatnonzero(np.abs(values) >= np.sort(np.abs(values))[-32]).astype(np.int32)
        threshold = np.abs(values[indices]).min()
    parameter = indices, values[indices], values.size, float(threshold)
    section = pruned_section(*parameter, "levels", grid=grid)
    assert section.kind is Kind.SIZED_LEVELS
    frame = encode_frame([section])
    expected = decode_frame(frame).sections[0].survivors()
    places, found = decode_by_size(bytes(frame.tolist()))
    order = np.argsort(places)
    np.testing.assert_array_equal(np.array(places)[order], expected[0])
    np.testing.assert_array_equal(np.array(found, np.float32)[order], expected[1])


@pytest.mark.parametrize("numel", [1, 64, 100, 1000])
def test_whole_powers_are_as_the_document_says(numel):
    values = np.random.default_rng(numel).standard_normal(numel).astype(np.float32)
    values[::3] *= 2e6
    values[numel // 2 :] *= numel < 900
    section = whole_section(values, "levels")
    assert section.kind is Kind.WHOLE_POWERS
    frame = encode_frame([section])
    found = np.array(decode_whole(bytes(frame.tolist())), np.float32)
    np.testing.assert_array_equal(found, decode_frame(frame).sections[0].survivors()[1])


# From here on: a decoder written from the document alone, as in test_wire_format.


def read_side(data, at, lines):
    runs, kinds = struct.unpack_from("<HB", data, at)
    counts, at = read_counts(data, at + 3, runs * kinds, lines)
    return [number % kinds for number, count in enumerate(counts) for _ in range(count)], at


class Arithmetic:
    def __init__(self, data, start):
        self.data, self.start, self.at = data, start, start
        self.low, self.high, self.code = 0, 2**32 - 1, 0
        self.p, self.s = [32768] * 28, [0] * 28
        for _ in range(4):
            self.shift()

    def shift(self):
        byte = self.data[self.at] if self.at < len(self.data) else 0
        self.code, self.at = (self.code << 8) % 2**32 + byte, self.at + 1

    def bit(self, p):
        middle = self.low + (self.high - self.low) * p // 65536
        one = self.code <= middle
        self.low, self.high = (self.low, middle) if one else (middle + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            self.low, self.high = (self.low << 8) % 2**32, (self.high << 8) % 2**32 + 255
            self.shift()
        return int(one)

    def learned(self, context):
        one, s = self.bit(self.p[context]), self.s[context]
        r = round(65536 / (s + 1.5))
        self.p[context] += ((65535 if one else 1) - self.p[context]) * r // 65536
        self.s[context] = min(s + 1, 60)
        return one

    def plain(self, bits):
        number = 0
        for _ in range(bits):
            number = 2 * number + self.bit(32768)
        return number

    def number(self):
        for context in range(12):
            if not self.learned(context):
                return context
        w = 0
        while w < 15 and self.learned(12 + w):
            w += 1
        return 11 + 2**w + self.plain(w)

    def has_ended(self):
        return self.at - self.start == len(self.data) - self.start + 3


def decode_by_size(frame):
    numel, count = struct.unpack_from("<II", frame, 32)
    columns, _, step, first, rest = struct.unpack_from("<Iffff", frame, PAYLOAD)
    of_rows, at = read_side(frame, PAYLOAD + 20, numel // columns)
    of_columns, at = read_side(frame, at, columns)
    classes = [row + column for row in of_rows for column in of_columns]
    in_order = sorted(range(numel), key=lambda element: (classes[element], element))
    kinds = max(of_rows) + max(of_columns) + 1
    sizes = [classes.count(c) for c in range(kinds)]
    counts, at = read_counts(frame, at, kinds, count)
    places, at = read_set(frame, at, edges_of(sizes), counts)
    signs = Bits(frame, at)
    negative = [signs.take(1) for _ in range(count)]
    at = signs.end()
    (total,) = struct.unpack_from("<I", frame, at)
    members, at = read_counts(frame, at + 4, kinds, total)
    is_zero = [2 * m > k for m, k in zip(members, counts, strict=True)]
    rare = [k - m if zero else m for m, k, zero in zip(members, counts, is_zero, strict=True)]
    edges = edges_of(counts)
    found, at = read_set(frame, at, edges, rare)
    code, values, found = Arithmetic(frame, at), [], set(found)
    for c in range(kinds):
        code.s = [min(s, 4) for s in code.s]
        for survivor in range(edges[c], edges[c + 1]):
            level, value = 0, first
            if (survivor in found) != is_zero[c]:
                level = code.number() + 1
                value = float32(rest + float32(step * level))
            value = -value if negative[survivor] else value
            if level == 4095:
                (value,) = struct.unpack("<f", struct.pack("<I", code.plain(32)))
            values.append(value)
    assert code.has_ended()
    return [in_order[place] for place in places], values


def edges_of(counts):
    return [sum(counts[:b]) for b in range(len(counts) + 1)]


def decode_whole(frame):
    (numel,) = struct.unpack_from("<I", frame, 32)
    code, values, mean = Arithmetic(frame, PAYLOAD), [], 2032
    for _ in range(numel):
        n = code.number()
        if not n:
            values.append(0.0)
            continue
        away = n // 2 if n % 2 else -n // 2
        e = (mean + 8) // 16 + away
        value = 2.0 ** (e - 127)
        values.append(-value if code.plain(1) else value)
        mean += (16 * e - mean) // 8
    size = code.at - code.start - 3
    assert len(frame) - PAYLOAD == max(size, 1, -(-numel // 64))
    return values
