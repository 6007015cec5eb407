"""Products by tiles: the same bits as sums in their order, whatever does not fill a tile."""

import numpy as np
import pytest

from gradsieve.rotation.fixed_order import add_gram, multiply
from gradsieve.rotation.tiles import AT_ONCE, ROW_BYTES, ROWS

LANES = {np.float32: ROW_BYTES // 4, np.float64: ROW_BYTES // 8}


def in_order(left, right, start):
    total = start.copy()
    for k in range(left.shape[1]):
        total += left[:, k, None] * right[k]
    return total


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [ROWS, ROWS + 1, 4 * ROWS - 1])
@pytest.mark.parametrize("extra", [0, 1, 13])
@pytest.mark.parametrize("terms", [1, AT_ONCE, AT_ONCE + 5, 2 * AT_ONCE])
def test_a_product_is_the_sum_in_the_order_of_its_terms(dtype, rows, extra, terms):
    rng = np.random.default_rng(terms)
    left = rng.standard_normal((rows, terms)).astype(dtype)
    right = rng.standard_normal((terms, LANES[dtype] + extra)).astype(dtype)
    product = np.full((rows, right.shape[1]), np.nan, dtype)
    multiply(left, right, product)
    expected = in_order(left, right, np.zeros_like(product))
    np.testing.assert_array_equal(product, expected)


@pytest.mark.parametrize("size", [16, 21, 40])
@pytest.mark.parametrize("rows", [1, 30, AT_ONCE + 3])
def test_a_gram_matrix_is_the_sum_in_the_order_of_its_rows(size, rows):
    rng = np.random.default_rng(rows)
    matrix = rng.standard_normal((rows, size)).astype(np.float32)
    before = rng.standard_normal((size, size)).astype(np.float32)
    gram = before.copy()
    add_gram(matrix, gram)
    transposed = np.ascontiguousarray(matrix.T)
    np.testing.assert_array_equal(gram, in_order(transposed, matrix, before))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_zero_times_an_infinity_is_skipped(bad):
    left = np.ones((12, 20), np.float32)
    left[3, 7] = 0
    right = np.ones((20, 32), np.float32)
    right[7] = bad
    product = np.empty((12, 32), np.float32)
    multiply(left, right, product)
    assert (product[3] == 19).all()
    assert not np.isfinite(np.delete(product, 3, axis=0)).any()
