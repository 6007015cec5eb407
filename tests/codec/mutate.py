"""Frames of every kind, and what may become of them on a bad day or at bad hands."""

import random
import zlib

import numpy as np

from gradsieve.codec import VALUES, Grid, encode_frame, pruned_section, whole_section
from gradsieve.codec.frame import CHECKED_FROM, ENTRY, HEADER

NUMELS = [3000, 700, 1, 40, 2048]
LAYOUT = 2**63 + 5
INTERESTING = [0, 1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1]


def sample_frame(seed: int) -> bytes:
    """A frame of five parameters; density, clustering and kinds follow the seed."""
    numbers = np.random.default_rng(seed)
    mode = VALUES[seed % len(VALUES)]
    sections = []
    for numel in NUMELS:
        values = numbers.laplace(size=numel).astype(np.float32)
        values *= np.repeat(numbers.lognormal(0, 2, 1 + numel // 100), 100)[:numel]
        if numel == 40:
            sections.append(whole_section(values, mode))
            continue
        threshold = float(np.quantile(np.abs(values), numbers.choice([0.2, 0.7, 0.97])))
        indices = np.flatnonzero(np.abs(values) > threshold).astype(np.int32)
        survivors = values[indices]
        row = int(numbers.choice([0, 100, 300]))
        grid = grid_of(numel, numbers) if numbers.random() < 0.5 else None
        sections.append(
            pruned_section(indices, survivors, numel, threshold, mode, row=row, grid=grid)
        )
    return encode_frame(sections, layout=LAYOUT, step=7).numpy().tobytes()


def grid_of(numel: int, numbers: np.random.Generator) -> Grid:
    """Some classes for rows of 20 elements, or of 1."""
    columns = 20 if numel % 20 == 0 else 1
    squares = [numbers.lognormal(0, 4, size) for size in (numel // columns, columns)]
    return Grid.of_squares(*(side.astype(np.float32) for side in squares))


SAMPLES = [sample_frame(seed) for seed in range(24)]


def seal(content: bytearray) -> bytes:
    """Make length and CRC right again: what follows them is then looked at."""
    if len(content) >= HEADER.itemsize:
        header = np.frombuffer(content, np.uint8)[: HEADER.itemsize].view(HEADER)
        header["bytes"] = len(content)
        header["crc32"] = zlib.crc32(content[CHECKED_FROM:])
    return bytes(content)


def flip_bits(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 2, 8, 64])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def truncate(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def extend(content: bytearray, chance: random.Random) -> None:
    content += bytes(chance.randrange(256) for _ in range(chance.randrange(1, 40)))


def splice(content: bytearray, chance: random.Random) -> None:
    other = chance.choice(SAMPLES)
    at = chance.randrange(min(len(content), len(other)))
    content[at:] = other[at:]


def forge_field(content: bytearray, chance: random.Random) -> None:
    """Another number in the header or the table."""
    sizes = [4, 4, 1, 1, 2, 4, 8, 8] + [4, 4, 4, 1, 1, 1, 1] * len(NUMELS)
    number = chance.randrange(len(sizes))
    at, size = sum(sizes[:number]), sizes[number]
    before = int.from_bytes(content[at : at + size], "little")
    near = [before - 1, before + 1, 2 * before, before // 2]
    value = chance.choice(INTERESTING + near) % 2 ** (8 * size)
    content[at : at + size] = value.to_bytes(size, "little")


def overwrite_run(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    stop = min(len(content), start + chance.randrange(1, 64))
    fill = chance.choice([0x00, 0xFF, None])
    for at in range(start, stop):
        content[at] = chance.randrange(256) if fill is None else fill


def overwrite_settings(content: bytearray, chance: random.Random) -> None:
    """The first numbers of a payload: block, threshold, step, reconstruction points, counts."""
    number = chance.randrange(len(NUMELS))
    start = HEADER.itemsize + len(NUMELS) * ENTRY.itemsize
    table = np.frombuffer(bytes(content[HEADER.itemsize : start]), ENTRY)
    at = start + int(table["bytes"][:number].sum()) + 4 * chance.randrange(8)
    value = chance.choice([*INTERESTING, 0x7F800000, 0x7FC00000, 0x80000001, 0x00000001])
    content[at : at + 4] = value.to_bytes(4, "little")


MUTATIONS = [
    flip_bits,
    truncate,
    extend,
    splice,
    forge_field,
    overwrite_run,
    overwrite_settings,
]


def mutated(seed: int) -> bytes:
    """A damaged frame, the same for the same seed; three of four have a right CRC."""
    chance = random.Random(seed)
    content = bytearray(chance.choice(SAMPLES))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if len(content) > HEADER.itemsize + len(NUMELS) * ENTRY.itemsize + 40:
            chance.choice(MUTATIONS)(content, chance)
    return seal(content) if chance.random() < 0.75 else bytes(content)
