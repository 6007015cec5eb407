"""docs/wire-format.md says what frames are: its example, and a decoder written from it."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import gradsieve as gs

DOCUMENT = Path(__file__).parents[2] / "docs" / "wire-format.md"
LEVELS, LAST_PLANE = 4, 23


def example():
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Example")[2]
    frame = bytes.fromhex(re.search(r"```hex\n(.*?)```", text, re.DOTALL)[1])
    rows = re.findall(r"^\| (\d+) \| (-?[\d.]+) \| (\d+) \| (-?[\d.]+) \|$", text, re.MULTILINE)
    indices, values, _, decoded = zip(*rows, strict=True)
    return (
        frame,
        torch.tensor([int(index) for index in indices], dtype=torch.int32),
        torch.tensor([float(value) for value in values]),
        torch.tensor([float(value) for value in decoded]),
    )


def test_the_example_is_decoded_as_the_document_says():
    frame, indices, _, decoded = example()
    got = gs.decode(torch.tensor(list(frame), dtype=torch.uint8))
    assert torch.equal(got[0], indices)
    assert torch.equal(got[1], decoded)


def test_the_example_is_what_is_encoded():
    frame, indices, values, _ = example()
    got = gs.encode(indices, values, 512, threshold=0.125, row=128)
    assert bytes(got.tolist()) == frame


def test_the_example_is_decoded_by_the_decoder_below():
    frame, indices, _, decoded = example()
    assert decode(frame) == (indices.tolist(), decoded.tolist())


@pytest.mark.parametrize("mode", ["levels", "float32", "bfloat16"])
@pytest.mark.parametrize("row", [0, 100])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("numel", [1, 700, 3000])
@pytest.mark.parametrize("clustered", [False, True])
def test_a_decoder_written_from_the_document_agrees(numel, share, row, mode, clustered):
    generator = np.random.default_rng(int(numel * (share + 2)))
    values = generator.standard_normal(numel).astype(np.float32)
    if clustered:
        values[numel // 6 : numel // 4] *= 30
    threshold = float(np.quantile(np.abs(values), 1 - share))
    check(values, threshold, row, mode)


def test_low_bits_planes_of_several_blocks_and_exact_values():
    generator = np.random.default_rng(0)
    survivors = 0.05 + generator.random(3000).astype(np.float32) / 10
    survivors[300:700] += generator.random(400).astype(np.float32)
    survivors[[5, 77, 2000]] = [30, -31, 32]
    values = np.zeros(12000, np.float32)
    values[::4] = survivors
    frame = check(values, 0.05, 0, "levels")
    # The decoder must have met them: without a row the first plane is right behind the settings.
    entry, first_plane = 32, 32 + 16 + 20
    assert frame[entry + 13] > 0
    assert frame[entry + 14] == LAST_PLANE + 1
    assert frame[first_plane + 4] > 0


def check(values, threshold, row, mode):
    threshold = float(np.float32(threshold))
    indices = np.flatnonzero(np.abs(values) >= np.float32(threshold)).astype(np.int32)
    survivors = torch.from_numpy(indices), torch.from_numpy(values[indices])
    frame = gs.encode(*survivors, values.size, threshold=threshold, row=row, mode=mode)
    expected = gs.decode(frame)
    assert decode(bytes(frame.tolist())) == (expected[0].tolist(), expected[1].tolist())
    return frame


# From here on: a decoder of one pruned parameter, written from the document alone. It checks
# nothing, uses whole numbers and struct, and must not import from gradsieve.codec.


class Bits:
    def __init__(self, data, start):
        self.data, self.at = data, 8 * start

    def take(self, bits):
        number = 0
        for j in range(bits):
            number |= (self.data[self.at >> 3] >> (self.at & 7) & 1) << j
            self.at += 1
        return number

    def unary(self):
        zeros = 0
        while not self.take(1):
            zeros += 1
        return zeros

    def end(self):
        return (self.at + 7) // 8


def rice_parameter(count, length):
    return ((481212 * (2 * length - count) - 1) // (2000000 * count)).bit_length()


def read_set(data, start, edges, counts):
    """The positions of a set whose blocks begin at `edges`, and the byte behind them."""
    blocks = [
        (edges[b], count, rice_parameter(count, edges[b + 1] - edges[b]))
        for b, count in enumerate(counts)
        if count
    ]
    lows = Bits(data, start)
    unary = Bits(data, start + (sum(count * k for _, count, k in blocks) + 7) // 8)
    positions = []
    for origin, count, k in blocks:
        behind = origin
        for _ in range(count):
            positions.append(behind + (unary.unary() << k) + lows.take(k))
            behind = positions[-1] + 1
    return positions, unary.end()


def read_counts(data, start, blocks, total):
    if blocks == 1:
        return [total], start
    marks, end = read_set(data, start, [0, total + blocks], [blocks])
    return [mark - before - 1 for before, mark in zip([-1, *marks], marks, strict=False)], end


def even_edges(universe, block):
    return [*range(0, universe, block), universe]


def float32(number):
    return struct.unpack("<f", struct.pack("<f", number))[0]


def read_levels(data, at, count, low_bits, planes, step, first, rest):
    depths, members = [0] * count, list(range(count))
    for _ in range(planes):
        size, log = struct.unpack_from("<IB", data, at)
        universe = len(members)
        block = 1 << log if log else universe
        counts, at = read_counts(data, at + 5, -(-universe // block), size)
        places, at = read_set(data, at, even_edges(universe, block), counts)
        members = [members[place] for place in places]
        for member in members:
            depths[member] += 1
    exact = members if planes == LAST_PLANE + 1 else []
    exact_values = struct.unpack_from(f"<{len(exact)}f", data, at)
    signs = Bits(data, at + 4 * len(exact))
    negative = [signs.take(1) for _ in range(count)]
    lows = Bits(data, signs.end())
    levels = [(depth << low_bits) + lows.take(low_bits) for depth in depths]
    # A double holds a product of two float32 exactly, so that each sum is rounded once as well.
    magnitudes = [float32(rest + float32(step * level)) if level else first for level in levels]
    values = [-m if sign else m for m, sign in zip(magnitudes, negative, strict=True)]
    for member, value in zip(exact, exact_values, strict=True):
        values[member] = value
    return values, lows.end()


def decode(frame):
    """Indices and values in a frame of one parameter of kind FLOAT32, BFLOAT16 or LEVELS."""
    numel, count, size, kind, low_bits, planes, _ = struct.unpack_from("<IIIBBBB", frame, 32)
    if not count:
        return [], []
    block, _ = struct.unpack_from("<If", frame, 48)
    own = struct.unpack_from("<fff", frame, 56) if kind == LEVELS else ()
    counts, at = read_counts(frame, 56 + 4 * len(own), -(-numel // block), count)
    if kind == LEVELS:
        values, at = read_levels(frame, at, count, low_bits, planes, *own)
    else:
        width = {2: 4, 3: 2}[kind]
        raw = [frame[at + width * i : at + width * (i + 1)] for i in range(count)]
        values = [struct.unpack("<f", bytes(4 - width) + value)[0] for value in raw]
        at += width * count
    indices, at = read_set(frame, at, even_edges(numel, block), counts)
    assert at == 48 + size
    return indices, values
