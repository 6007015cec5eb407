"""What compiled loops are given is looked at before they are: else they write behind its end."""

import numpy as np
import pytest
import torch

from gradsieve.codec import VALUES, encode_frame, pruned_section, whole_section
from gradsieve.codec.bfloat16 import from_bfloat16, to_bfloat16
from gradsieve.recording.counting import counted
from gradsieve.rotation import Rotation
from gradsieve.rotation.basis import Basis, orthonormal, product
from gradsieve.sieve import Workspace, sample_magnitudes
from gradsieve.sieve.cpu import measure_on_cpu, sieve_on_cpu

N = 100
CPU = torch.device("cpu")


def floats(size=N):
    return np.ones(size, np.float32)


def halves(size=N):
    return np.ones(size, np.int16)


def places(size=N):
    return np.arange(size, dtype=np.int32)


def read_only(array):
    array.flags.writeable = False
    return array


def unaligned(dtype, size=N):
    memory = np.zeros(size * np.dtype(dtype).itemsize + 1, np.uint8)
    return memory[1:].view(dtype)


def sieve(gradient=None, residual=None, into=None, clear=False):
    gradient = floats() if gradient is None else gradient
    residual = floats() if residual is None else residual
    into = residual if into is None else into
    sieve_on_cpu(gradient, residual, into, 0.5, Workspace(), clear=clear)


def prune(indices=None, values=None, residual=None, mode="levels", numel=N):
    indices = places() if indices is None else indices
    values = floats() if values is None else values
    pruned_section(indices, values, numel, 0.5, mode, residual=residual)


def add(total, mode="levels"):
    pruned_section(places(), floats(), N, 0.5, mode).add_to(total, 1.0)


def add_whole(total):
    whole_section(floats(), "bfloat16").add_to(total, 1.0)


FLAT = {
    "to_bfloat16": (to_bfloat16, np.float32),
    "from_bfloat16": (from_bfloat16, np.int16),
    "whole levels": (lambda array: whole_section(array, "levels"), np.float32),
    "whole float32": (lambda array: whole_section(array, "float32"), np.float32),
    "measure": (lambda array: measure_on_cpu(array, None), np.float32),
    "measure's residual": (lambda array: measure_on_cpu(floats(), array), np.float32),
    "sieve": (lambda array: sieve(gradient=array), np.float32),
    "sieve's residual": (lambda array: sieve(residual=array), np.float32),
    "sieve's target": (lambda array: sieve(into=array), np.float32),
    "indices": (lambda array: prune(indices=array), np.int32),
    "exact indices": (lambda array: prune(indices=array, mode="float32"), np.int32),
    "values": (lambda array: prune(values=array), np.float32),
    "bfloat16 values": (lambda array: prune(values=array, mode="bfloat16"), np.float32),
    "exact values": (lambda array: prune(values=array, mode="float32"), np.float32),
    "residual": (lambda array: prune(residual=array), np.float32),
    "bfloat16 residual": (lambda array: prune(residual=array, mode="bfloat16"), np.float32),
    "total": (add, np.float32),
    "exact total": (lambda array: add(array, "float32"), np.float32),
    "whole total": (add_whole, np.float32),
}
SIZED = set(FLAT) - {"to_bfloat16", "from_bfloat16", "whole levels", "whole float32", "measure"}


@pytest.fixture(params=FLAT.values(), ids=FLAT.keys())
def flat(request):
    return request.param


def good(dtype):
    return np.arange(N).astype(dtype)


def test_what_fits_is_taken(flat):
    call, dtype = flat
    call(good(dtype))


def test_another_dtype(flat):
    call, dtype = flat
    others = {np.float64, np.float32, np.float16, np.int64, np.int32, np.uint16, np.int16}
    for other in others - {dtype}:
        with pytest.raises(TypeError, match=np.dtype(other).name):
            call(good(other))
    with pytest.raises(TypeError, match=">"):
        call(good(np.dtype(dtype).newbyteorder(">")))
    for other in (good(dtype).tolist(), torch.from_numpy(good(dtype))):
        with pytest.raises((TypeError, AttributeError)):
            call(other)


def test_strides_and_dimensions(flat):
    call, dtype = flat
    for other in (
        np.repeat(good(dtype), 2)[::2],
        good(dtype)[::-1],
        good(dtype).reshape(10, 10),
        unaligned(dtype),
    ):
        with pytest.raises(ValueError, match="contiguous"):
            call(other)


@pytest.mark.parametrize("name", sorted(SIZED))
@pytest.mark.parametrize("size", [0, N - 1, N + 1])
def test_another_size(name, size):
    call, dtype = FLAT[name]
    with pytest.raises(ValueError, match="elements"):
        call(np.arange(size).astype(dtype))


def test_read_only_targets():
    for call in (
        add,
        add_whole,
        lambda array: sieve(into=array),
        lambda array: sieve(gradient=array, clear=True),
        lambda array: prune(residual=array),
    ):
        with pytest.raises(ValueError, match="read-only"):
            call(read_only(floats()))
    sieve(gradient=read_only(floats()))


@pytest.mark.parametrize("mode", VALUES)
@pytest.mark.parametrize(
    ("indices", "numel"),
    [
        ([-1, 3], 10),
        ([3, 10], 10),
        ([3, 3], 10),
        ([4, 3], 10),
        ([1, 2**31 - 1], 10),
        ([0, 9, 5], 10),
        ([7, 1, 8], 10),
        ([0], 0),
    ],
)
def test_indices_that_do_not_ascend_within_the_parameter(mode, indices, numel):
    indices = np.array(indices, np.int32)
    with pytest.raises(ValueError, match="ascend"):
        prune(indices, floats(indices.size), mode=mode, numel=numel)


def test_the_sample_of_magnitudes():
    good = torch.ones(N)
    for other, error in (
        (torch.ones(N, dtype=torch.float64), TypeError),
        (torch.ones(N, dtype=torch.bfloat16), TypeError),
        (torch.ones(2 * N)[::2], ValueError),
        (torch.ones(N - 1), ValueError),
        (torch.ones(10, 10), ValueError),
        (torch.ones(N, device="meta"), ValueError),
    ):
        for pair in ((good, other), (other, good)):
            with pytest.raises(error):
                sample_magnitudes(*pair, 0)


def test_histograms():
    for other, error in (
        (torch.ones(N, dtype=torch.float64), TypeError),
        (torch.ones(2 * N)[::2], ValueError),
        (torch.ones(10, 10), ValueError),
    ):
        with pytest.raises(error):
            counted(other, N)


def test_matrices():
    square = torch.eye(4, dtype=torch.float64)
    for left, right, error in (
        (square, square.float(), TypeError),
        (square.float(), square, TypeError),
        (square.half(), square.half(), TypeError),
        (square.int(), square.int(), TypeError),
        (square[:, :3], square, ValueError),
        (square, square[:3], ValueError),
        (square[0], square, ValueError),
        (square, square[0], ValueError),
    ):
        with pytest.raises(error):
            product(left, right)
    for matrix, error in (
        (square.float(), TypeError),
        (square[:3], ValueError),
        (square[0], ValueError),
    ):
        with pytest.raises(error):
            orthonormal(matrix)
    strided = torch.arange(64, dtype=torch.float64).view(8, 8)[::2, ::2]
    assert torch.equal(product(strided, square), strided)
    assert torch.allclose(orthonormal(strided.T).T @ orthonormal(strided.T), square)


def test_rotations():
    basis = Basis(4, CPU)
    for matrix, error in (
        (torch.ones(3, 4, dtype=torch.float64), TypeError),
        (torch.ones(3, 5), ValueError),
        (torch.ones(4), ValueError),
    ):
        with pytest.raises(error):
            basis.learn(matrix)
    basis.covariance = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="shape"):
        basis.learn(torch.ones(2, 4))
    for method in (Rotation.learn, Rotation.restore):
        with pytest.raises(TypeError):
            method(Rotation(4, 4, 2, CPU), torch.ones(16, dtype=torch.float64))


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_default_dtype_and_device_change_nothing(double):
    from gradsieve.bucket.warm_up import warm_up

    with torch.device("meta"):
        for values in VALUES:
            warm_up.__wrapped__(values, True, True)
        rotation = Rotation(4, 4, 2, CPU)
        section = pruned_section(places(), floats(), N, 0.5, "levels")
        assert encode_frame([section]).device == CPU
    assert rotation.bases[0].vectors.dtype is torch.float32
