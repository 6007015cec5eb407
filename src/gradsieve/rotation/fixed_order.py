"""Linear algebra with the same bits on every machine, and with any number of threads.

Each rank inverts the rotation for itself, and the ranks' replicas must stay equal. The matrix
product of a library adds terms in an order that depends on the processor. Here every element is the
sum of its terms in their order, and each product is rounded before it is added. The inner loops run
along rows, over elements that are independent of each other, so that they still use vector
registers.
"""

import math

import numpy as np

from gradsieve.rotation.tiles import add_tiles, all_finite, fits, share_of_nonzero
from gradsieve.runtime.compiled import compiled

AT_ONCE = 4
"""The rows that are added at once, while a part of the result is in registers."""
NEGLIGIBLE = 1e-30
"""The norm below which a column has no direction, in a matrix with entries of up to 1."""
DENSE = 0.5
"""The share of nonzero elements from which skipping zeros no longer pays."""
SPARSE = 4
"""Rows with fewer than one nonzero element in SPARSE are multiplied by these elements alone."""


@compiled
def add_row(row, factor, other):  # type: ignore[no-untyped-def]
    """Compute row += factor · other."""
    for j in range(row.size):
        row[j] += factor * other[j]


@compiled
def add_rows(row, factors, places, count, others):  # type: ignore[no-untyped-def]
    """Compute row += Σ factors[k] · others[places[k]] for k below `count`, in order."""
    whole = count // AT_ONCE * AT_ONCE
    for k in range(0, whole, AT_ONCE):
        f, g, h, i = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        a, b = others[places[k]], others[places[k + 1]]
        c, d = others[places[k + 2]], others[places[k + 3]]
        for j in range(row.size):
            row[j] = (((row[j] + f * a[j]) + g * b[j]) + h * c[j]) + i * d[j]
    for k in range(whole, count):
        add_row(row, factors[k], others[places[k]])


@compiled
def gather_nonzero(row, factors, places):  # type: ignore[no-untyped-def]
    """Write a row's nonzero elements and their places, and return their number.

    factors, places: with room for one more element than the row has.
    """
    count = 0
    for k in range(row.size):
        factors[count] = row[k]
        places[count] = k
        count += 1 if row[k] != 0 else 0
    return count


@compiled
def multiply(left, right, product):  # type: ignore[no-untyped-def]
    """Compute product = left · right, skipping zeros of `left`.

    left: [M, K]; right: [K, N]; product: [M, N]. All are contiguous and of one dtype.
    """
    # Without skipping, a 0 times an infinity would be NaN.
    if fits(product) and share_of_nonzero(left) >= DENSE and all_finite(right):
        product[:] = 0
        row_bytes = left.shape[1] * left.itemsize
        add_tiles(product, left.ctypes.data, row_bytes, left.itemsize, right)
        return
    factors = np.empty(left.shape[1] + 1, left.dtype)
    places = np.empty(left.shape[1] + 1, np.int64)
    for i in range(left.shape[0]):
        row = product[i]
        row[:] = 0
        count = gather_nonzero(left[i], factors, places)
        add_rows(row, factors, places, count, right)


@compiled
def add_gram(matrix, gram):  # type: ignore[no-untyped-def]
    """Compute gram += matrixᵀ · matrix, skipping zeros of `matrix`.

    matrix: float32 [M, N], finite; gram: float32 [N, N].
    """
    n = matrix.shape[1]
    if fits(gram) and share_of_nonzero(matrix) >= DENSE:
        add_tiles(gram, matrix.ctypes.data, matrix.itemsize, n * matrix.itemsize, matrix)
        return
    factors = np.empty(n + 1, np.float32)
    places = np.empty(n + 1, np.int64)
    for i in range(matrix.shape[0]):
        row = matrix[i]
        count = gather_nonzero(row, factors, places)
        for a in range(count):
            target = gram[places[a]]
            if SPARSE * count > n:
                add_row(target, factors[a], row)
            else:
                for b in range(count):
                    target[places[b]] += factors[a] * factors[b]


@compiled
def orthonormal_factor(matrix, factor):  # type: ignore[no-untyped-def]
    """Write Q of matrix = Q · R to `factor`, and R to `matrix`. Both are float64 [N, N].

    The largest entry of `matrix` should be about 1. Householder reflections are used (G. Golub, C.
    Van Loan, Matrix Computations, algorithm 5.2.1), which keep Q orthonormal even if the matrix
    does not have full rank. The diagonal of R may be negative.
    """
    n = matrix.shape[0]
    reflectors = np.zeros((n, n))
    scales = np.zeros(n)
    sums = np.empty(n)
    for k in range(n):
        v = reflectors[k]
        square = 0.0
        for i in range(k, n):
            v[i] = matrix[i, k]
            square += v[i] * v[i]
        norm = math.sqrt(square)
        if norm < NEGLIGIBLE:
            continue
        v[k] += norm if v[k] >= 0 else -norm
        scales[k] = 1 / (norm * abs(v[k]))
        reflect(matrix, v, scales[k], k, sums)
    factor[:] = 0
    for i in range(n):
        factor[i, i] = 1
    for k in range(n - 1, -1, -1):
        if scales[k] != 0:
            reflect(factor, reflectors[k], scales[k], k, sums)


@compiled
def reflect(matrix, v, scale, first, sums):  # type: ignore[no-untyped-def]
    """Compute matrix -= scale · v · (vᵀ · matrix) in the rows and columns from `first` on.

    v: float64 [N]; matrix: float64 [N, N]; sums: float64 [N], overwritten.
    """
    part = sums[first:]
    part[:] = 0
    for i in range(first, v.size):
        add_row(part, v[i], matrix[i, first:])
    for i in range(first, v.size):
        add_row(matrix[i, first:], -scale * v[i], part)
