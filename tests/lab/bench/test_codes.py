"""What the bench says of levels, of other codes and of the bound."""

import math

import pytest
import torch

from gradsieve.codec import encode_frame
from gradsieve.lab.bench.bound import rate_distortion
from gradsieve.lab.bench.codec import (
    DENSITIES,
    Selected,
    rates_of_denser,
    relative_error,
    select_share,
)
from gradsieve.lab.bench.gradients import laplace
from gradsieve.lab.bench.peers import error_at, low_rank, peer_rows
from gradsieve.lab.methods.played.rounded import eight_bit


def levels_at(gradient, density):
    chosen: Selected = select_share(gradient, density)
    frame = encode_frame([chosen.section()])
    return 8 * frame.numel() / gradient.numel(), relative_error([chosen], frame)


@pytest.fixture(scope="module")
def gradient():
    return laplace(2**18)


@pytest.fixture(scope="module")
def levels(gradient):
    return [levels_at(gradient, density) for density in DENSITIES] + rates_of_denser(
        {"laplace": gradient}
    )


def test_levels_lie_below_every_code_that_sends_elements_or_rounds_all(gradient, levels):
    peers = list(peer_rows("laplace", {"laplace": gradient}, DENSITIES))
    compared = [p for p in peers if 0.02 <= p.bits_per_parameter <= 6 and "SGD" not in p.method]
    assert len(compared) >= 8
    for peer in compared:
        assert error_at(peer.bits_per_parameter, levels) <= peer.relative_error


def test_levels_lie_above_the_bound_and_near_it(gradient, levels):
    bound = rate_distortion([gradient])
    for rate, error in levels:
        least = error_at(rate, bound)
        if 0.02 < rate < 3:
            assert least <= error <= 1.6 * least


def test_the_bound_is_that_of_a_laplace_source():
    # At high rates the Shannon lower bound: h - 1/2 log2(2 pi e D), tight; h = log2(2 e b).
    for rate, error in rate_distortion([laplace(2**20)]):
        if rate > 3:
            shannon = 0.5 * math.log2(2 * math.e / math.pi / (2 * error))
            assert rate == pytest.approx(shannon, abs=0.15)


def test_a_matrix_of_rank_one_is_sent_exactly():
    matrix = torch.outer(torch.arange(1.0, 41.0), torch.linspace(-1, 1, 30))
    near, bits = low_rank(matrix, 1)
    torch.testing.assert_close(near, matrix)
    assert bits == 32 * (40 + 30)


def test_eight_bits_round_by_half_a_step():
    numbers = torch.linspace(-3, 3, 1001)
    assert (eight_bit(numbers) - numbers).abs().max() <= 3 / 127 / 2 * 1.001


def test_an_error_between_two_points_of_a_curve():
    curve = [(1.0, 0.5), (4.0, 0.05)]
    assert error_at(2.0, curve) == pytest.approx(math.sqrt(0.5 * 0.05))
    assert error_at(8.0, curve) == 0.05
    assert error_at(0.5, curve) is None
