"""The kernel and the device version against the numpy reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from processes import printed_by
from reference import sieve_reference

from gradsieve.sieve import Workspace, measure, select
from gradsieve.sieve.cpu import STREAMED_FROM
from gradsieve.sieve.device import measure_on_device, sieve_on_device
from gradsieve.sieve.tile import BLOCK, TILE

SUMS = ("sum", "unsent_sum", "unsent_square_sum", "survivor_sum", "survivor_square_sum", "largest")
SIZES = [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, TILE - 1, TILE, TILE + 5, 3 * TILE + BLOCK + 3]


def bits(array):
    return np.asarray(array).view(np.int32)


def assert_same_moments(got, want):
    assert (got.numel, got.survivors, got.nonfinite) == (
        want.numel,
        want.survivors,
        want.nonfinite,
    )
    magnitude = want.unsent_sum + want.survivor_sum
    for name in SUMS:
        floor = 1e-5 * magnitude if name == "sum" else 0.0
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-4, abs=floor), name
    if 1e-25 < want.gradient_square_sum < 1e30:
        assert got.gradient_square_sum == pytest.approx(want.gradient_square_sum, rel=1e-4)
    elif not math.isfinite(want.gradient_square_sum):
        assert not math.isfinite(got.gradient_square_sum)


def run_kernel(gradient, residual, threshold):
    left = torch.from_numpy(residual.copy())
    indices, values, moments = select(torch.from_numpy(gradient), left, threshold)
    return indices.numpy(), values.numpy(), left.numpy(), moments


def run_device(gradient, residual, threshold):
    left = torch.from_numpy(residual.copy())
    indices, values, moments = sieve_on_device(torch.from_numpy(gradient), left, threshold)
    return indices.numpy(), values.numpy(), left.numpy(), moments


def assert_matches_reference(gradient, residual, threshold):
    want = sieve_reference(gradient, residual, threshold)
    for run in (run_kernel, run_device):
        got = run(gradient, residual, threshold)
        for mine, reference in zip(got[:3], want[:3], strict=True):
            np.testing.assert_array_equal(bits(mine), bits(reference))
        assert_same_moments(got[3], want[3])


def normal(size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0, 3.5, math.inf])
def test_every_size_and_threshold(size, threshold):
    assert_matches_reference(normal(size), 0.1 * normal(size, 1), threshold)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size = 3 * 256 * 1024 + 77
        assert_matches_reference(normal(size), normal(size, 1), 1.0)
        assert_matches_reference(normal(size), normal(size, 1), 0.0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_a_gradient_may_be_cleared_in_the_same_pass(size, threshold):
    gradient, residual = normal(size), 0.1 * normal(size, 1)
    want = sieve_reference(gradient, residual, threshold)
    for run in (select, sieve_on_device):
        cleared, left = torch.from_numpy(gradient.copy()), torch.from_numpy(residual.copy())
        indices, values, moments = run(cleared, left, threshold, clear=True)
        assert not cleared.any()
        for mine, reference in zip((indices, values, left), want[:3], strict=True):
            np.testing.assert_array_equal(bits(mine), bits(reference))
        assert_same_moments(moments, want[3])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0, math.inf])
@pytest.mark.parametrize("clear", [False, True])
def test_the_new_residual_may_go_elsewhere(size, threshold, clear):
    gradient, residual = normal(size), 0.1 * normal(size, 1)
    gradient[5::1000] = math.nan
    want = sieve_reference(gradient, residual, threshold)
    for run in (select, sieve_on_device):
        flat, before = torch.from_numpy(gradient.copy()), torch.from_numpy(residual.copy())
        into = torch.full((size,), math.nan)
        indices, values, moments = run(flat, before, threshold, clear=clear, into=into)
        for mine, reference in zip((indices, values, into), want[:3], strict=True):
            np.testing.assert_array_equal(bits(mine), bits(reference))
        np.testing.assert_array_equal(bits(before), bits(residual))
        np.testing.assert_array_equal(bits(flat), bits(np.zeros_like(flat) if clear else gradient))
        assert_same_moments(moments, want[3])


@pytest.mark.parametrize("offset", [0, 1])
def test_a_large_residual_goes_elsewhere_past_the_caches(offset):
    size = STREAMED_FROM + BLOCK + 3
    gradient = torch.randn(size, generator=torch.Generator().manual_seed(0))
    residual, into = torch.zeros(size), torch.full((size + offset,), math.nan)[offset:]
    indices, values, moments = select(gradient, residual, 2.0, into=into)
    in_place = select(gradient, residual, 2.0)
    assert torch.equal(into, residual)
    assert torch.equal(indices, in_place[0])
    assert torch.equal(values, in_place[1])
    assert moments == in_place[2]


def test_exact_ties_stay():
    gradient = np.array([1.0, -1.0, np.nextafter(np.float32(1), np.float32(2)), 0.0], np.float32)
    assert_matches_reference(gradient, np.zeros(4, np.float32), 1.0)
    indices, _, _, _ = run_kernel(gradient, np.zeros(4, np.float32), 1.0)
    assert indices.tolist() == [2]


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-30, 1e-20, 1e20, 1e37])
def test_denormals_and_extremes_keep_their_moments(magnitude):
    gradient = np.float32(magnitude) * np.ones(TILE + 3, np.float32)
    gradient[::3] *= -1
    assert_matches_reference(gradient, np.zeros_like(gradient), magnitude / 2)
    assert_matches_reference(gradient, np.zeros_like(gradient), magnitude * 2)


@pytest.mark.parametrize("threshold", [0.0, 1.0, math.inf])
@pytest.mark.parametrize("position", [0, 100, TILE + 6])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_goes_out_and_leaves_the_residual(threshold, position, value):
    gradient, residual = normal(TILE + 7), 0.1 * normal(TILE + 7, 1)
    gradient[position] = value
    assert_matches_reference(gradient, residual, threshold)
    indices, _, left, moments = run_kernel(gradient, residual, threshold)
    assert position in indices
    assert left[position] == residual[position]
    assert moments.nonfinite == 1
    assert math.isfinite(moments.std)


def test_overflow_of_the_sum_is_nonfinite():
    gradient = np.full(100, 3e38, np.float32)
    assert_matches_reference(gradient, gradient.copy(), 1.0)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    size=st.integers(0, 300),
    threshold=st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e30, math.inf]),
)
def test_any_floats(data, size, threshold):
    floats = st.floats(width=32)
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    gradient = data.draw(hnp.arrays(np.float32, size, elements=floats))
    residual = data.draw(hnp.arrays(np.float32, size, elements=finite))
    want = sieve_reference(gradient, residual, threshold)
    for run in (run_kernel, run_device):
        got = run(gradient, residual, threshold)
        for mine, reference in zip(got[:3], want[:3], strict=True):
            np.testing.assert_array_equal(bits(mine), bits(reference))
        assert got[3].survivors == want[3].survivors
        assert got[3].nonfinite == want[3].nonfinite


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0, 4), steps=st.integers(1, 5))
def test_nothing_is_lost(seed, threshold, steps):
    """Law 1: new residual + survivors = old residual + gradient, bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    residual = torch.zeros(1000)
    for _ in range(steps):
        gradient = torch.randn(1000, generator=generator)
        accumulated = gradient + residual
        indices, values, _ = select(gradient, residual, threshold)
        back = residual.clone()
        back[indices.long()] += values
        assert torch.equal(back, accumulated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strides_and_dtypes(dtype):
    gradient = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)).to(dtype)
    transposed = gradient.t().contiguous().t()
    assert not transposed.is_contiguous()
    residuals = torch.zeros(2, 40, 60)
    one = select(gradient, residuals[0], 1.0)
    other = select(transposed, residuals[1], 1.0)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert one[1].dtype is torch.float32
    assert torch.equal(residuals[0], residuals[1])
    dense = gradient.float()
    assert torch.equal(residuals[0], torch.where(dense.abs() > 1.0, 0.0, dense))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_measure_is_select_at_infinity_and_changes_nothing(size, with_residual):
    gradient, residual = normal(size), normal(size, 1)
    gradient[::13] = np.nan
    left = residual if with_residual else np.zeros_like(residual)
    want = sieve_reference(gradient, left, math.inf)[3]
    tensors = (
        torch.from_numpy(gradient.copy()),
        torch.from_numpy(left.copy()) if with_residual else None,
    )
    for run in (measure, measure_on_device):
        got = run(*tensors)
        assert got.nonfinite == want.nonfinite
        for name in SUMS:
            floor = 1e-5 * want.unsent_sum if name == "sum" else 0.0
            value = getattr(want, name)
            if name.startswith("survivor"):
                value = 0.0
            assert getattr(got, name) == pytest.approx(value, rel=1e-4, abs=floor), name
    np.testing.assert_array_equal(bits(tensors[0].numpy()), bits(gradient))
    if with_residual:
        np.testing.assert_array_equal(bits(tensors[1].numpy()), bits(residual))


def test_a_workspace_holds_several_parameters_side_by_side():
    workspace = Workspace()
    gradients = [torch.from_numpy(normal(size, size)) for size in (5000, 77, 3000)]
    for _ in range(3):
        found = [select(g, torch.zeros(g.numel()), 1.0, out=workspace) for g in gradients]
        for gradient, (indices, values, _) in zip(gradients, found, strict=True):
            assert torch.equal(indices.long(), (gradient.abs() > 1).nonzero().squeeze(1))
            assert torch.equal(values, gradient[gradient.abs() > 1])
        workspace.clear()


def test_a_workspace_asks_for_no_new_memory_from_the_third_step_on():
    workspace, gradient, addresses = Workspace(), torch.from_numpy(normal(5000)), []
    for _ in range(4):
        for _ in range(3):
            _, values, _ = select(gradient, torch.zeros(5000), 1.0, out=workspace)
        addresses.append(values.data_ptr())
        workspace.clear()
    assert addresses[1] == addresses[2] == addresses[3]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"threshold": -1.0}, ValueError, "0 or more"),
        ({"threshold": math.nan}, ValueError, "0 or more"),
        ({"gradient": torch.zeros(10, dtype=torch.float64)}, TypeError, "float64"),
        ({"gradient": torch.zeros(10, dtype=torch.int32)}, TypeError, "int32"),
        ({"gradient": torch.zeros(10).to_sparse()}, TypeError, "sparse=False"),
        ({"residual": torch.zeros(9)}, ValueError, "9 elements"),
        ({"gradient": torch.zeros(10).half(), "clear": True}, ValueError, "cleared"),
        ({"gradient": torch.zeros(20)[::2], "clear": True}, ValueError, "cleared"),
        ({"residual": torch.zeros(10, dtype=torch.float16)}, TypeError, "float32"),
        ({"residual": torch.zeros(20)[::2]}, ValueError, "contiguous"),
        ({"residual": torch.zeros(10, device="meta")}, ValueError, "meta"),
        ({"into": torch.zeros(9)}, ValueError, "into has 9 elements"),
        ({"into": torch.zeros(10, dtype=torch.float64)}, TypeError, "into must be torch.float32"),
        ({"into": torch.zeros(20)[::2]}, ValueError, "into is written to and must be contiguous"),
        ({"into": torch.zeros(10, device="meta")}, ValueError, "into is on meta"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {
        "gradient": torch.zeros(10),
        "residual": torch.zeros(10),
        "threshold": 1.0,
    }
    with pytest.raises(error, match=words):
        select(**(arguments | change))


@pytest.mark.parametrize("shift", [0, 4, 9])
@pytest.mark.parametrize("name", ["gradient", "residual"])
def test_a_new_residual_in_memory_that_is_read_is_refused(name, shift):
    memory = torch.zeros(20)
    arguments = {"gradient": torch.zeros(10), "residual": torch.zeros(10)}
    arguments[name] = memory[:10]
    with pytest.raises(ValueError, match=f"memory of the {name}"):
        select(**arguments, threshold=1.0, into=memory[shift : shift + 10])
    select(**arguments, threshold=1.0, into=memory[10:])


def test_processors_without_avx2_get_the_same_bits():
    """The other way of packing, which AVX-512 and every other processor take."""
    chosen = f"{__file__}::test_every_size_and_threshold"
    printed_by("-m", "pytest", "-q", "-p", "no:cacheprovider", chosen, NUMBA_CPU_NAME="generic")
