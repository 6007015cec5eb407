"""Histograms over fixed logarithmic bins."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsieve.recording.counting import count_on_device, histogram_of, sampled
from gradsieve.recording.histogram import (
    BINS,
    BINS_A_SIGN,
    LARGEST_EXPONENT,
    SMALLEST_EXPONENT,
    Histogram,
    edges,
    overall,
    sum_of,
)

histogram_of(torch.ones(1))  # Compiles, for longer than an example may take.

floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


def by_reference(values):
    """Counted by comparing with the edges."""
    finite = values[np.isfinite(values)].astype(np.float64)
    outermost = np.nextafter(2.0**LARGEST_EXPONENT, 0)
    inside = np.clip(finite, -outermost, outermost)
    # A bin holds its edge that is nearer to zero.
    positive = np.histogram(inside[inside >= 0], edges())[0]
    negative = np.histogram(-inside[inside < 0], edges())[0][::-1]
    return positive + negative


@given(st.lists(floats, max_size=50))
def test_every_element_is_in_the_bin_of_its_sign_and_magnitude(numbers):
    values = np.array(numbers, np.float32)
    for found in (histogram_of(torch.from_numpy(values)), on_device(values)):
        finite = values[np.isfinite(values)].astype(np.float64)
        assert found.counts.tolist() == by_reference(values).tolist()
        assert found.nonfinite == len(values) - len(finite)
        assert found.elements == len(values)
        assert found.total == pytest.approx(finite.sum(), abs=1e-9 * np.abs(finite).sum())
        assert found.square_sum == pytest.approx((finite**2).sum())


def on_device(values):
    return count_on_device(torch.from_numpy(values), values.size)


def test_edges_ascend_and_zero_is_in_the_middle():
    assert len(edges()) == BINS + 1
    assert (np.diff(edges()) > 0).all()
    assert edges()[BINS_A_SIGN + 1] == 2.0**SMALLEST_EXPONENT
    assert edges()[-1] == 2.0**LARGEST_EXPONENT
    assert histogram_of(torch.zeros(3)).counts[BINS_A_SIGN] == 3


@given(st.lists(floats, max_size=30))
def test_json_gives_back_what_was_counted(numbers):
    found = histogram_of(torch.tensor(numbers, dtype=torch.float32))
    again = Histogram.from_json(json.loads(json.dumps(found.as_json())))
    assert (again.counts == found.counts).all()
    assert (again.elements, again.nonfinite) == (found.elements, found.nonfinite)
    assert (again.total, again.square_sum) == (found.total, found.square_sum)


def test_an_empty_json_is_short():
    assert histogram_of(torch.zeros(0)).as_json()["bins"] == [0]
    assert len(histogram_of(torch.ones(5)).as_json()["bins"]) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_counted_as_float32(dtype):
    tensor = torch.randn(100).to(dtype)
    assert (histogram_of(tensor).counts == histogram_of(tensor.float()).counts).all()


def test_a_tensor_with_gaps_is_counted_whole():
    tensor = torch.randn(40, 30)[:, ::2]
    assert (histogram_of(tensor).counts == histogram_of(tensor.contiguous()).counts).all()


def test_samples_of_tensors_as_large_are_of_the_same_places():
    one, two = torch.randn(2, 100_000)
    assert torch.equal(sampled(one, 4) + sampled(two, 4), sampled(one + two, 4))


def test_a_sample_is_a_part_that_looks_like_the_whole():
    torch.manual_seed(0)
    tensor = torch.randn(2**20)
    found = histogram_of(tensor, every=16)
    assert found.counted == 2**16
    assert found.elements == 2**20
    assert found.deviation == pytest.approx(1, rel=0.02)
    assert found.mean == pytest.approx(0, abs=0.02)
    # Few elements are all counted.
    assert histogram_of(tensor[:5000], every=16).counted == 5000


def test_shares_beyond_deviations_are_those_of_a_normal_distribution():
    torch.manual_seed(0)
    found = histogram_of(3e-4 * torch.randn(2**18) + 1e-4)
    assert found.mean == pytest.approx(1e-4, rel=0.03)
    assert found.deviation == pytest.approx(3e-4, rel=0.01)
    assert found.share_beyond(1) == pytest.approx(0.3173, abs=0.004)
    assert found.share_beyond(2) == pytest.approx(0.0455, abs=0.003)


def test_a_narrow_distribution_far_from_zero_has_no_shares_in_bins_as_wide_as_itself():
    torch.manual_seed(0)
    found = histogram_of(1 + 0.01 * torch.randn(10_000))
    assert found.deviation == pytest.approx(0.01, rel=0.05)
    assert found.share_beyond(1) is None
    assert histogram_of(torch.full((100,), 3.0)).share_beyond(1) == 0


def test_a_sample_sees_every_column():
    columns = torch.arange(1024.0) // 256
    matrix = columns.expand(4096, 1024).contiguous()
    found = histogram_of(matrix, every=16)
    assert found.counted == matrix.numel() / 16
    assert found.mean == pytest.approx(1.5, abs=0.1)


def test_sums_and_the_whole_model():
    one, two = torch.randn(100), torch.randn(2**17)
    ranks = sum_of([histogram_of(one), histogram_of(one)])
    assert ranks.counted == ranks.elements == 200
    model = overall([histogram_of(one), histogram_of(two, every=8)])
    assert model.elements == 100 + 2**17
    assert model.counted == pytest.approx(model.elements)
    assert model.deviation == pytest.approx(1, rel=0.03)
