"""The bases: nothing is lost in them, they find what gradients have in common."""

import pytest
import torch

from gradsieve.rotation import Rotation, rotation_of
from gradsieve.rotation.rotation import LONGEST_SIDE, PERIOD, matrix_of

CPU = torch.device("cpu")


def low_rank(rows, columns, rank, seed):
    """Gradients whose rows and columns keep to a few directions, which they mix anew each time."""
    fixed = torch.Generator().manual_seed(0)
    left = torch.randn(rows, rank, generator=fixed)
    right = torch.randn(rank, columns, generator=fixed)
    mixed = torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed))
    return (left @ mixed @ right).view(-1)


def followed(rotation, gradients, density=1.0):
    for gradient in gradients:
        coefficients = rotation.coefficients(gradient)
        least = coefficients.abs().quantile(1 - density)
        rotation.learn(torch.where(coefficients.abs() >= least, coefficients, 0.0))
        if rotation.is_due:
            rotation.turn([])
    return rotation


@pytest.mark.parametrize("shape", [(2, 2), (12, 7), (64, 300), (130, 33)])
def test_a_gradient_survives_its_coefficients(shape):
    rotation = followed(
        Rotation(*shape, 32, CPU), (low_rank(*shape, 3, seed) for seed in range(2 * PERIOD))
    )
    gradient = torch.randn(shape).view(-1)
    restored = rotation.coefficients(gradient)
    assert float(restored.norm()) == pytest.approx(float(gradient.norm()), rel=1e-5)
    rotation.restore(restored)
    torch.testing.assert_close(restored, gradient, rtol=1e-4, atol=1e-5)


def test_few_coefficients_carry_what_gradients_have_in_common():
    rows, columns, rank = 48, 80, 3
    rotation = followed(
        Rotation(rows, columns, 128, CPU),
        (low_rank(rows, columns, rank, seed) for seed in range(3 * PERIOD)),
        density=0.05,
    )
    gradient = low_rank(rows, columns, rank, 999)
    squares = rotation.coefficients(gradient).square().sort(descending=True).values
    assert float(squares[: 4 * rank * rank].sum() / squares.sum()) > 0.99
    elements = gradient.square().sort(descending=True).values
    assert float(elements[: 4 * rank * rank].sum() / elements.sum()) < 0.3
    # The first vectors come first.
    first = rotation.coefficients(gradient).view(rows, columns)[: 2 * rank, : 2 * rank]
    assert float(first.square().sum() / squares.sum()) > 0.98


def test_residuals_turn_with_the_bases():
    rotation = Rotation(20, 30, 8, CPU)
    gradient = torch.randn(600)
    residual = rotation.coefficients(gradient)
    for seed in range(3):
        rotation.learn(rotation.coefficients(low_rank(20, 30, 2, seed)))
        rotation.turn([residual])
    torch.testing.assert_close(residual, rotation.coefficients(gradient), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(residual, gradient, atol=0.1)


def test_bases_stay_orthonormal_over_thousands_of_turns():
    rotation = Rotation(8, 12, 128, CPU)
    for seed in range(2000):
        rotation.learn(rotation.coefficients(torch.randn(96)) * 10.0 ** (seed % 30 - 15))
        rotation.turn([])
    for basis in rotation.bases:
        gram = basis.vectors @ basis.vectors.T
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-4)


def test_the_same_gradients_give_the_same_bits_and_others_do_not():
    def fingerprint(first):
        shape = (40, 24)
        gradients = (low_rank(*shape, 2, first + seed) for seed in range(PERIOD))
        return followed(Rotation(*shape, 16, CPU), gradients).fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_teaches_nothing(bad):
    rotation, other = (
        followed(Rotation(8, 6, 128, CPU), (low_rank(8, 6, 2, seed) for seed in range(5)))
        for _ in range(2)
    )
    poison = torch.randn(48)
    poison[5] = bad
    rotation.learn(poison)
    rotation.turn([])
    other.turn([])
    assert rotation.fingerprint == other.fingerprint
    rotation.restore(poison)
    assert not bool(poison.isfinite().all())


def test_gradients_too_large_to_square_leave_the_bases_as_they_are():
    rotation = Rotation(8, 6, 128, CPU)
    rotation.learn(torch.full((48,), 1e30))
    residual = torch.randn(48)
    before = residual.clone()
    rotation.turn([residual])
    assert torch.equal(residual, before)
    assert all(bool(basis.vectors.isfinite().all()) for basis in rotation.bases)


def test_a_saved_rotation_goes_on_to_the_bit():
    gradients = [low_rank(20, 30, 2, seed) for seed in range(2 * PERIOD)]
    rotation = followed(Rotation(20, 30, 16, CPU), gradients[: PERIOD + 3])
    loaded = Rotation(20, 30, 16, CPU)
    loaded.require_fit("w", rotation.save())
    loaded.load(rotation.save())
    assert loaded.fingerprint == rotation.fingerprint
    for one in (rotation, loaded):
        followed(one, gradients[PERIOD + 3 :])
    assert loaded.fingerprint == rotation.fingerprint


def test_a_rotation_of_other_blocks_does_not_fit():
    saved = Rotation(20, 30, 8, CPU).save()
    with pytest.raises(ValueError, match="w: the saved rotation has vectors"):
        Rotation(20, 30, 16, CPU).require_fit("w", saved)


@pytest.mark.parametrize(
    ("parameter", "matrix"),
    [
        (torch.empty(5, 7), (5, 7)),
        (torch.empty(7, 5).T, (7, 5)),
        (torch.empty(4, 3, 2, 2), (4, 12)),
        (torch.empty(4, 3, 2, 2).to(memory_format=torch.channels_last), (4, 12)),
        (torch.empty(1, 8, 6), (8, 6)),
        (torch.empty(8, 1, 6), (8, 6)),
        (torch.empty(5, 8, 6), (5, 48)),
        (torch.empty(9), (9, 1)),
        (torch.empty(()), (1, 1)),
        (torch.empty(0, 4), (1, 0)),
    ],
)
def test_the_matrix_is_that_which_lies_in_memory(parameter, matrix):
    assert matrix_of(parameter) == matrix


@pytest.mark.parametrize("parameter", [torch.empty(9), torch.empty(1, 9), torch.empty(0, 4)])
def test_vectors_are_not_rotated(parameter):
    assert rotation_of(parameter, 128) is None


def test_a_very_long_side_is_left_as_it_is():
    words = LONGEST_SIDE + 1
    rotation = rotation_of(torch.empty(words, 10), 4)
    assert [len(side) for side in (rotation.left, rotation.right)] == [0, 3]
    gradient = torch.randn(10 * words)
    rotation.learn(gradient)
    rotation.turn([])
    coefficients = rotation.coefficients(gradient)
    assert not torch.equal(coefficients, gradient)
    rows = gradient.view(words, 10).square().sum(dim=1)
    torch.testing.assert_close(coefficients.view(words, 10).square().sum(dim=1), rows)
    rotation.restore(coefficients)
    torch.testing.assert_close(coefficients, gradient, rtol=1e-4, atol=1e-5)
    assert len(rotation_of(torch.empty(3072, 768), 64).left) == 48


def test_autocast_does_not_round_coefficients():
    rotation = followed(Rotation(40, 24, 16, CPU), [low_rank(40, 24, 2, 0)])
    gradient = torch.randn(960)
    expected = rotation.coefficients(gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rotation.coefficients(gradient), expected)


def test_bases_turn_once_a_step_that_is_due():
    rotation = Rotation(6, 6, 8, CPU)
    assert not rotation.is_due
    rotation.learn(torch.randn(36))
    assert rotation.is_due
    rotation.turn([])
    assert not rotation.is_due


def test_block_0_rotates_nothing():
    assert rotation_of(torch.empty(50, 50), 0) is None


def test_mean_squares_say_where_coefficients_are_large():
    rows, columns, rank = 48, 80, 3
    rotation = Rotation(rows, columns, 128, CPU)
    assert rotation.mean_squares() is None
    followed(rotation, (low_rank(rows, columns, rank, seed) for seed in range(3 * PERIOD)))
    expected = rotation.mean_squares()
    assert expected is not None
    for squares, size in zip(expected, (rows, columns), strict=True):
        assert squares.shape == (size,)
        assert (squares.diff() <= 0).all()
        assert float(squares[:rank].sum() / squares.sum()) > 0.98


def test_mean_squares_descend_within_each_block():
    rotation = Rotation(20, 30, 10, CPU)
    followed(rotation, [torch.randn(600, generator=torch.Generator().manual_seed(0))])
    for squares in rotation.mean_squares():
        assert all((block.diff() <= 0).all() for block in squares.split(10))


def test_nothing_is_expected_of_a_side_without_bases():
    rotation = followed(Rotation(LONGEST_SIDE + 1, 2, 2, CPU), [torch.ones(2 * LONGEST_SIDE + 2)])
    assert rotation.mean_squares() is None
