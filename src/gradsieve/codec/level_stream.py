"""The levels of survivors that come class by class.

Which survivors have a level of 1 or more is a set, with a count for each class. The levels of these
are numbers in an arithmetic code, whose probabilities follow the classes.
"""

import numpy as np

from gradsieve.codec.adaptive import (
    AT,
    end_writing,
    ends_at,
    get_number,
    get_plain,
    loosen,
    new_probabilities,
    put_number,
    put_plain,
    start_reading_bits,
    start_writing,
)
from gradsieve.codec.bits import load_word
from gradsieve.codec.blocks import counts_room, read_counts, set_room, write_counts
from gradsieve.codec.positions import (
    behind_last,
    read_some,
    start_reading,
    write_positions,
    write_rest,
)
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
HIGHEST = 4095
"""The level of survivors that are sent exactly."""
MOST_BYTES = 8
"""The bytes that are there for each level. Where they do not suffice, values travel exactly."""
MOST_BYTES_OF_ONE = 100
"""More bytes than any one level can take, with its exact value and the end of the stream."""
STILL_SEEN = 4
"""The bits that a class's probabilities count of those of the class before it."""
MEMBERS_BYTES = 4
"""The size of the number of survivors of level 1 or more."""


@compiled
def members_of(levels, counts):  # type: ignore[no-untyped-def]
    """Return how many survivors of each class have a level of 1 or more, int32 [classes]."""
    members = np.zeros(counts.size, np.int32)
    i = 0
    for c in range(counts.size):
        for _ in range(counts[c]):
            members[c] += levels[i] > 0
            i += 1
    return members


@compiled
def rarer(members, counts):  # type: ignore[no-untyped-def]
    """Return for each class whether level 0 is the rarer case, and the number of the rarer one."""
    is_zero, rare = np.empty(counts.size, np.uint8), np.empty(counts.size, np.int32)
    for c in range(counts.size):
        is_zero[c] = 2 * members[c] > counts[c]
        rare[c] = counts[c] - members[c] if is_zero[c] else members[c]
    return is_zero, rare


@compiled
def edges_of(counts):  # type: ignore[no-untyped-def]
    """Return where the survivors of each class begin, and their number, int64 [classes + 1]."""
    edges = np.zeros(counts.size + 1, np.int64)
    for c in range(counts.size):
        edges[c + 1] = edges[c] + counts[c]
    return edges


@compiled
def write_levels(levels, values, counts, members, address, limit):  # type: ignore[no-untyped-def]
    """Write levels (uint16 [N]), and values (float32 [N]) of level HIGHEST as they are.

    counts: how many survivors are in each class; members: how many of them have a level of 1 or
    more. Returns the address behind them, or 0 where they might pass `limit`.
    """
    is_zero, rare = rarer(members, counts)
    # Room for one more place, which is written before it is known whether it is one.
    places = np.empty(levels.size + 1, np.int32)
    found, i = 0, 0
    for c in range(counts.size):
        for _ in range(counts[c]):
            places[found] = i
            found += (levels[i] == 0) == (is_zero[c] == 1)
            i += 1
    total = 0
    for c in range(members.size):
        total += members[c]
    address = write_rest(address, UINT(total), 8 * MEMBERS_BYTES)
    address = write_counts(members, address)
    address = write_positions(places[:found], edges_of(counts), rare, address)
    patterns = values.view(np.uint32)
    state, probabilities = start_writing(address), new_probabilities()
    i = 0
    for c in range(counts.size):
        loosen(probabilities, STILL_SEEN)
        for _ in range(counts[c]):
            if levels[i]:
                if state[AT] + MOST_BYTES_OF_ONE > limit:
                    return np.int64(0)
                put_number(state, probabilities, np.int64(levels[i]) - 1)
                if levels[i] == HIGHEST:
                    put_plain(state, np.int64(patterns[i]), 32)
            i += 1
    return end_writing(state)


@compiled
def read_levels(address, end, counts, levels, values):  # type: ignore[no-untyped-def]
    """Write what `write_levels` has written to levels (uint16 [N]).

    The values of survivors of level HIGHEST are written to values (float32 [N]). Returns whether
    the levels end with the payload.
    """
    if end - address < MEMBERS_BYTES:
        return False
    total = np.int64(load_word(address) & UINT(0xFFFFFFFF))
    if total > levels.size:
        return False
    edges = edges_of(counts)
    members, address = read_class_counts(address + MEMBERS_BYTES, end, edges, total)
    if address == 0:
        return False
    is_zero, rare = rarer(members, counts)
    size = 0
    for c in range(rare.size):
        size += rare[c]
    places = np.empty(size, np.int32)
    marks = start_reading(address, edges, rare)
    if not read_some(marks, address, end, edges, rare, places):
        return False
    for c in range(counts.size):
        levels[edges[c] : edges[c + 1]] = is_zero[c]
    for place in places:
        levels[place] ^= 1
    state, probabilities = start_reading_bits(behind_last(marks), end), new_probabilities()
    patterns = values.view(np.uint32)
    i = 0
    for c in range(counts.size):
        loosen(probabilities, STILL_SEEN)
        for _ in range(counts[c]):
            if levels[i]:
                level = get_number(state, probabilities, end) + 1
                if level > HIGHEST:
                    return False
                levels[i] = level
                if level == HIGHEST:
                    patterns[i] = np.uint32(get_plain(state, 32, end))
            i += 1
    return ends_at(state) == end


@compiled
def levels_room(counts, members):  # type: ignore[no-untyped-def]
    """Return the bytes that `write_levels` may have, and touches at most."""
    survivors = 0
    for count in counts:
        survivors += count
    rare = rarer(members, counts)[1]
    room = MEMBERS_BYTES + counts_room(members) + set_room(edges_of(counts), rare)
    return room + MOST_BYTES * survivors + MOST_BYTES_OF_ONE


@compiled
def read_class_counts(address, end, edges, count):  # type: ignore[no-untyped-def]
    """Return the number of survivors in each class, and the address behind these numbers.

    The address is 0 where they are damaged, or do not fit the sizes of the classes.
    """
    classes, numel = edges.size - 1, edges[-1]
    counts, address = read_counts(address, end, classes * numel, numel, count)
    if address == 0:
        # There may be fewer counts than classes.
        return counts, address
    for c in range(classes):
        if counts[c] > edges[c + 1] - edges[c]:
            return counts, np.int64(0)
    return counts, address
