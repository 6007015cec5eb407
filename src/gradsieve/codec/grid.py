"""Classes of the elements of a matrix by the size that is expected of them.

Each row has a class, and so has each column. The class of an element is the sum of both: 0 for the
largest elements, and one more wherever half the magnitude is expected. All elements of a class are
numbered through, in their order in the matrix, and the classes follow one another. A survivor's
place is its number in that order.

Rows come in runs in which the class never falls. Of each run the payload says how many rows each
class has, and so for columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.bits import STORE_REACH, load_word
from gradsieve.codec.blocks import counts_room, read_counts, write_counts
from gradsieve.codec.coding import Floats
from gradsieve.codec.positions import write_rest
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
CLASSES = 8
"""The most classes of a side."""
BITS_OF_A_CLASS = 2
"""Powers of two of the mean square from one class to the next: half the magnitude."""
RUNS_BYTES = 3
"""The bytes before the counts of a side: the number of runs, u16, and that of classes, u8."""

Classes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The classes of the rows and columns of a matrix, each uint8 below CLASSES."""

    rows: Classes
    columns: Classes

    @classmethod
    def of_squares(cls, rows: Floats, columns: Floats) -> "Grid":
        """Return the grid of a matrix.

        Args:
            rows, columns: the mean square of each row and of each column, up to a factor.
        """
        return cls(classes_of(rows), classes_of(columns))

    @property
    def numel(self) -> int:
        return self.rows.size * self.columns.size

    def of_piece(self, start: int, stop: int) -> "Grid | None":
        """Return the grid of elements `start` to `stop`, or None where they are no whole rows."""
        width = self.columns.size
        if start % width or stop % width:
            return None
        return Grid(self.rows[start // width : stop // width], self.columns)


def classes_of(squares: Floats) -> Classes:
    """Return the class of each line by its mean square, of which the largest has class 0."""
    is_there = squares > 0
    # Exponents are whole numbers: a logarithm would differ in its last bit between processors.
    _, exponents = np.frexp(np.where(is_there, squares, np.float32(1)))
    largest = exponents[is_there].max(initial=-(2**15))
    classes = np.where(is_there, (largest - exponents) // BITS_OF_A_CLASS, CLASSES)
    return classes.clip(0, CLASSES - 1).astype(np.uint8)


@compiled
def runs_of(classes):  # type: ignore[no-untyped-def]
    """Return how many lines of each class are in each run, int32 [runs, classes]."""
    runs, most = 1, classes[0]
    for i in range(1, classes.size):
        runs += classes[i] < classes[i - 1]
        most = max(most, classes[i])
    counts = np.zeros((runs, np.int64(most) + 1), np.int32)
    run = 0
    for i in range(classes.size):
        run += i > 0 and classes[i] < classes[i - 1]
        counts[run, classes[i]] += 1
    return counts


@compiled
def side_room(counts):  # type: ignore[no-untyped-def]
    """Return an upper bound of the bytes that `write_side` touches."""
    return RUNS_BYTES + STORE_REACH + counts_room(counts.reshape(-1))


@compiled
def write_side(counts, address):  # type: ignore[no-untyped-def]
    """Write what `runs_of` returns at an address, and return the address behind it."""
    runs, classes = counts.shape
    address = write_rest(address, UINT(runs) | UINT(classes) << UINT(16), 8 * RUNS_BYTES)
    return write_counts(counts.reshape(-1), address)


@compiled
def read_side(address, end, size):  # type: ignore[no-untyped-def]
    """Return the classes of a side of `size` lines, uint8, and the address behind them.

    The address is 0 where the side is damaged.
    """
    classes = np.zeros(size, np.uint8)
    nothing = np.int64(0)
    if end - address < RUNS_BYTES:
        return classes, nothing
    word = load_word(address)
    runs, kinds = np.int64(word & UINT(0xFFFF)), np.int64((word >> UINT(16)) & UINT(0xFF))
    address += RUNS_BYTES
    if runs == 0 or kinds == 0 or kinds > CLASSES:
        return classes, nothing
    # As many blocks as there are counts, each of which may have all lines.
    counts, address = read_counts(address, end, runs * kinds * size, size, size)
    if address == 0:
        return classes, nothing
    line = 0
    for b in range(counts.size):
        for _ in range(counts[b]):
            classes[line] = b % kinds
            line += 1
    return classes, address


@compiled
def sizes_of(rows, columns):  # type: ignore[no-untyped-def]
    """Return where the elements of each class begin, and their number, int64 [classes + 1]."""
    in_rows, in_columns = lines_of_each(rows), lines_of_each(columns)
    edges = np.zeros(in_rows.size + in_columns.size, np.int64)
    for a in range(in_rows.size):
        for b in range(in_columns.size):
            edges[a + b + 1] += in_rows[a] * in_columns[b]
    for c in range(edges.size - 1):
        edges[c + 1] += edges[c]
    return edges


@compiled
def lines_of_each(classes):  # type: ignore[no-untyped-def]
    """Return the number of lines of each class, int64, up to the last class that has any."""
    counts, last = np.zeros(CLASSES, np.int64), 0
    for i in range(classes.size):
        counts[classes[i]] += 1
        last = max(last, np.int64(classes[i]))
    return counts[: last + 1]


@compiled
def columns_by_class(columns):  # type: ignore[no-untyped-def]
    """Return the columns, class by class (int32), where each class begins, and each one's rank.

    The starts are int64 [CLASSES + 1], the ranks within the class int32 [columns].
    """
    starts = np.zeros(CLASSES + 1, np.int64)
    for j in range(columns.size):
        starts[columns[j] + 1] += 1
    for c in range(CLASSES):
        starts[c + 1] += starts[c]
    sorted_columns = np.empty(columns.size, np.int32)
    ranks = np.empty(columns.size, np.int32)
    found = np.zeros(CLASSES, np.int64)
    for j in range(columns.size):
        c = columns[j]
        ranks[j] = found[c]
        sorted_columns[starts[c] + found[c]] = j
        found[c] += 1
    return sorted_columns, starts, ranks


@compiled
def place_survivors(indices, rows, columns, edges):  # type: ignore[no-untyped-def]
    """Return the places of survivors, ascending, and which survivor is at each; both int32.

    Also the number of survivors in each class, int32 [classes]. indices: int32, ascending.
    """
    width = columns.size
    _, _, ranks = columns_by_class(columns)
    in_columns = lines_of_each(columns)
    classes = np.empty(indices.size, np.uint8)
    places = np.empty(indices.size, np.int32)
    counts = np.zeros(edges.size - 1, np.int32)
    # Where the elements of each class in this row begin.
    ahead = edges[:-1].copy()
    row, row_start = 0, np.int64(0)
    for i in range(indices.size):
        index = np.int64(indices[i])
        while index >= row_start + width:
            for b in range(in_columns.size):
                ahead[rows[row] + b] += in_columns[b]
            row += 1
            row_start += width
        column = index - row_start
        c = rows[row] + columns[column]
        classes[i] = c
        places[i] = ahead[c] + ranks[column]
        counts[c] += 1
    behind = np.zeros(counts.size, np.int64)
    for c in range(1, counts.size):
        behind[c] = behind[c - 1] + counts[c - 1]
    order, sorted_places = np.empty(indices.size, np.int32), np.empty(indices.size, np.int32)
    for i in range(indices.size):
        c = classes[i]
        order[behind[c]] = i
        sorted_places[behind[c]] = places[i]
        behind[c] += 1
    return sorted_places, order, counts


@compiled
def find_survivors(places, counts, rows, columns, edges):  # type: ignore[no-untyped-def]
    """Replace the places of survivors, within the classes that `counts` says, by their indices."""
    width = columns.size
    sorted_columns, starts, _ = columns_by_class(columns)
    first = 0
    for c in range(counts.size):
        row, ahead, wide = -1, edges[c], np.int64(0)
        for i in range(first, first + counts[c]):
            place = np.int64(places[i])
            while place >= ahead + wide:
                ahead += wide
                row += 1
                b = c - rows[row]
                wide = starts[b + 1] - starts[b] if 0 <= b < CLASSES else np.int64(0)
            column = sorted_columns[starts[c - rows[row]] + place - ahead]
            places[i] = row * width + column
        first += counts[c]
