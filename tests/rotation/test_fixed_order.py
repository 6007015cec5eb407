"""Products and factors: right, and the same bits however they are made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsieve.rotation.fixed_order import add_gram, multiply, orthonormal_factor


def pruned(rng, shape, density):
    return np.where(rng.random(shape) < density, rng.standard_normal(shape), 0)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 9), st.integers(0, 40), st.integers(0, 33)),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 9),
)
def test_a_product_is_the_sum_in_the_order_of_its_terms(sizes, density, dtype, seed):
    rows, inner, columns = sizes
    rng = np.random.default_rng(seed)
    left = pruned(rng, (rows, inner), density).astype(dtype)
    right = rng.standard_normal((inner, columns)).astype(dtype)
    product = np.full((rows, columns), np.nan, dtype)
    multiply(left, right, product)
    expected = np.zeros((rows, columns), dtype)
    for k in range(inner):
        expected += np.where(left[:, k, None] != 0, left[:, k, None] * right[k], 0).astype(dtype)
    assert np.array_equal(product, expected)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 20),
    size=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 9),
)
def test_the_gram_matrix_is_symmetric_to_the_bit(rows, size, density, seed):
    rng = np.random.default_rng(seed)
    matrix = pruned(rng, (rows, size), density).astype(np.float32)
    gram = np.eye(size, dtype=np.float32)
    add_gram(matrix, gram)
    assert np.array_equal(gram, gram.T)
    np.testing.assert_allclose(gram, np.eye(size) + matrix.T @ matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 5, 60])
@pytest.mark.parametrize("size", [1, 2, 60])
def test_the_factor_is_orthonormal_whatever_the_rank(rank, size):
    rng = np.random.default_rng(rank)
    half = rng.standard_normal((size, rank)) * 10.0 ** -np.arange(rank)
    matrix = half @ half.T
    matrix /= max(np.abs(matrix).max(), 1e-300)
    factor, upper = np.empty_like(matrix), matrix.copy()
    orthonormal_factor(upper, factor)
    np.testing.assert_allclose(factor.T @ factor, np.eye(size), atol=1e-12)
    remainder = factor.T @ matrix
    np.testing.assert_allclose(np.tril(remainder, -1), 0, atol=1e-12)


def test_a_matrix_with_almost_empty_columns_has_a_finite_factor():
    matrix = np.diag(10.0 ** -np.arange(0, 320, 4.0))
    factor = np.empty_like(matrix)
    orthonormal_factor(matrix, factor)
    assert np.isfinite(factor).all()
