"""The histogram of a sample of magnitudes."""

import math

import numpy as np
import pytest
import torch
from draws import DRAWS, draw_pools, on_one_thread

from gradsieve.sieve import sample_magnitudes
from gradsieve.sieve.magnitudes import Magnitudes, count_on_device, every_nth_run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with on_one_thread():
        yield


@pytest.fixture(scope="module")
def pools():
    return draw_pools()


@pytest.mark.parametrize("numel", [1, 63, 64, 1000, 2**18, 2**18 + 1, 900_001])
def test_the_histogram_counts_alike_on_the_cpu_and_on_devices(numel, pools):
    gradient = pools["lognormal"][:numel].clone()
    gradient[0] = math.nan
    residual = pools["normal"][:numel]
    for step in range(5):
        got = sample_magnitudes(gradient, residual, step)
        every = -(-numel // 2**18)
        first = int(got.phase * every)
        accumulated = every_nth_run(gradient + residual, first, every)
        np.testing.assert_array_equal(got.counts, count_on_device(accumulated))
        nonfinite = int((~accumulated.isfinite()).sum())
        assert got.counts.sum() == accumulated.numel() - nonfinite


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("numel", [200_000, 1_000_000])
def test_the_histogram_finds_the_threshold_of_a_density(kind, numel, pools):
    gradient = pools[kind][:numel]
    magnitudes = sample_magnitudes(gradient, torch.zeros(numel), step=3)
    for density in (0.5, 0.1, 0.01, 0.001):
        threshold = magnitudes.threshold_for(density)
        assert (gradient.abs() > threshold).sum() / numel == pytest.approx(density, rel=0.2)


def test_a_histogram_of_zeros_or_of_nothing_lets_everything_pass():
    zeros = sample_magnitudes(torch.zeros(100), torch.zeros(100), step=0)
    nothing = Magnitudes(np.zeros_like(zeros.counts), 0.5)
    assert zeros.threshold_for(0.1) == nothing.threshold_for(0.1) == 0.0
