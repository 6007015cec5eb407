"""Frames come back as they went in, or raise."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradsieve as gs
from gradsieve.codec import (
    VALUES,
    FrameError,
    decode_frame,
    empty_section,
    encode_frame,
    pruned_section,
    whole_section,
)
from gradsieve.codec.frame import CHECKED_FROM, ENTRY, HEADER

SETTINGS = np.dtype([("block", "<u4"), ("threshold", "<f4")])
LEVEL_SETTINGS = np.dtype([("step", "<f4"), ("first", "<f4"), ("rest", "<f4")])


def survivors(numel, count, seed=0):
    generator = np.random.default_rng(seed)
    indices = np.sort(generator.choice(numel, count, replace=False)).astype(np.int32)
    return indices, generator.standard_normal(count).astype(np.float32)


def bucket_frame(seed=0):
    indices, values = survivors(1000, 40, seed)
    values += np.copysign(np.float32(0.5), values)
    sections = [
        pruned_section(indices, values, 1000, 0.5, "levels"),
        whole_section(np.arange(10, dtype=np.float32), "float32"),
        empty_section(5000, 1.0),
    ]
    return sections, encode_frame(sections, layout=2**63 + 5, step=7)


@settings(deadline=None)
@given(numel=st.integers(0, 500), share=st.floats(0, 1), threshold=st.floats(0, 2.0**100, width=32))
def test_what_was_encoded_is_decoded(numel, share, threshold):
    indices, values = survivors(numel, int(share * numel))
    values += np.copysign(np.float32(threshold), values)
    arguments = torch.from_numpy(indices), torch.from_numpy(values), numel
    for mode, precision in (("float32", 0.0), ("bfloat16", 2.0**-8)):
        frame = gs.encode(*arguments, threshold=threshold, mode=mode)
        assert frame.dtype is torch.uint8
        got = gs.decode(frame)
        np.testing.assert_array_equal(got[0].numpy(), indices)
        np.testing.assert_allclose(got[1].numpy(), values, rtol=precision)
        assert decode_frame(frame).sections[0].threshold == threshold


def test_a_bucket_of_parameters():
    sections, frame = bucket_frame()
    got = decode_frame(frame, layout=2**63 + 5, numels=[1000, 10, 5000])
    assert (got.step, got.layout) == (7, 2**63 + 5)
    assert [s.whole for s in got.sections] == [False, True, False]
    for mine, theirs in zip(got.sections, sections, strict=True):
        for left, right in zip(mine.survivors(), theirs.survivors(), strict=True):
            np.testing.assert_array_equal(left, right)
        total = np.ones(mine.numel, np.float32)
        mine.add_to(total, 0.5)
        indices, values = theirs.survivors()
        expected = np.ones(mine.numel, np.float32)
        expected[indices] += np.float32(0.5) * values
        np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("mode", VALUES)
def test_values_that_are_not_finite_arrive_as_they_are(mode):
    values = torch.tensor([torch.inf, -2.0, torch.nan])
    frame = gs.encode(torch.tensor([0, 3, 9], dtype=torch.int32), values, 10, mode=mode)
    torch.testing.assert_close(gs.decode(frame)[1], values, equal_nan=True, rtol=0, atol=0)
    assert decode_frame(frame).nonfinite


@pytest.mark.parametrize("mode", VALUES)
def test_the_largest_float_stays_finite(mode):
    largest = np.array([3.4028235e38, -3.4028235e38, 1.0], np.float32)
    for section in (
        whole_section(largest, mode),
        pruned_section(np.arange(3, dtype=np.int32), largest, 3, 1.0, mode),
    ):
        assert np.isfinite(section.survivors()[1]).all()


def test_the_largest_float_is_near_the_largest_bfloat16():
    largest = np.array([3.4028235e38, -3.4028235e38, 1.0], np.float32)
    _, values = whole_section(largest, "bfloat16").survivors()
    np.testing.assert_allclose(values, largest, rtol=2.0**-7)


@pytest.mark.parametrize("threshold", [3e38, 1e35, 0.0])
def test_levels_near_the_largest_float_decode(threshold):
    values = torch.tensor([3.1e38, -3.2e38, 3.4028235e38])
    indices = torch.tensor([0, 5, 999_999], dtype=torch.int32)
    places, arrived = gs.decode(gs.encode(indices, values, 10**6, threshold=threshold))
    assert places.tolist() == indices.tolist()
    torch.testing.assert_close(arrived, values)


def test_levels_of_eight_million_survivors_decode():
    count = 2**23 + 5
    values = torch.rand(count, generator=torch.manual_seed(0)) * 1e-3 + 1
    values[torch.randperm(count // 4)[:300]] = 2.0
    frame = gs.encode(torch.arange(count, dtype=torch.int32), values, count, threshold=1.0)
    _, arrived = gs.decode(frame)
    assert (arrived - values).abs().max() < 0.01


@pytest.mark.parametrize("mode", VALUES)
def test_the_residual_gets_what_a_frame_does_not_carry(mode):
    # Equal magnitudes leave levels nothing to quantize: they travel exactly.
    for values in (torch.tensor([2.0, -2.0]), torch.tensor([2.1, -3.3])):
        residual = torch.full((8,), 9.0)
        frame = gs.encode(
            torch.tensor([1, 6], dtype=torch.int32),
            values,
            8,
            threshold=2.0,
            mode=mode,
            residual=residual,
        )
        _, arrived = gs.decode(frame)
        torch.testing.assert_close(arrived + residual[[1, 6]], values, rtol=1e-6, atol=0)
        assert residual[[0, 2, 3, 4, 5, 7]].tolist() == [9.0] * 6


def test_values_may_lie_in_the_residual():
    accumulated = torch.arange(1.0, 101.0)
    indices = torch.arange(100, dtype=torch.int32)
    frame = gs.encode(indices, accumulated, 100, mode="float32", residual=accumulated)
    torch.testing.assert_close(gs.decode(frame)[1], torch.arange(1.0, 101.0))
    assert not accumulated.any()


def test_a_section_is_added_to_its_own_parameter_only():
    section = decode_frame(bucket_frame()[1]).sections[0]
    with pytest.raises(ValueError, match="1000 elements"):
        section.add_to(np.zeros(10, np.float32), 1.0)


def test_an_unaligned_frame_decodes():
    _, frame = bucket_frame()
    shifted = torch.empty(frame.numel() + 1, dtype=torch.uint8)
    shifted[1:] = frame
    assert len(decode_frame(shifted[1:]).sections) == 3


def forged(change):
    """A frame with a valid CRC whose content was changed before."""
    _, frame = bucket_frame()
    raw = frame.numpy().copy()
    header = raw[: HEADER.itemsize].view(HEADER)
    start = HEADER.itemsize + 3 * ENTRY.itemsize
    table = raw[HEADER.itemsize : start].view(ENTRY)
    settings_ = raw[start : start + SETTINGS.itemsize].view(SETTINGS)
    behind = start + SETTINGS.itemsize
    own = raw[behind : behind + LEVEL_SETTINGS.itemsize].view(LEVEL_SETTINGS)
    change(header, table, settings_, own)
    header["crc32"] = zlib.crc32(raw[CHECKED_FROM:].tobytes())
    return torch.from_numpy(raw)


def put(array, index, field, value):
    array[field][index] = value


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda h, t, s, o: put(h, 0, "magic", b"GZIP"), "magic"),
        (lambda h, t, s, o: put(h, 0, "version", 1), "version"),
        (lambda h, t, s, o: put(h, 0, "flags", 2), "flags"),
        (lambda h, t, s, o: put(h, 0, "bytes", 7), "bytes"),
        (lambda h, t, s, o: put(h, 0, "sections", 2**16 - 1), "sections"),
        (lambda h, t, s, o: put(h, 0, "sections", 2), "section 0"),
        (lambda h, t, s, o: put(h, 0, "layout", 1), "layout"),
        (lambda h, t, s, o: put(t, 0, "count", 2**32 - 1), "section 0 count"),
        (lambda h, t, s, o: put(t, 0, "count", 1000), "section 0 count"),
        (lambda h, t, s, o: put(t, 0, "numel", 2**31), "section 0 numel"),
        (lambda h, t, s, o: put(t, 0, "bytes", 2**32 - 1), "section 0 bytes"),
        (lambda h, t, s, o: put(t, 0, "kind", 9), "section 0 kind"),
        (lambda h, t, s, o: put(t, 0, "zero", 9), "section 0 zero"),
        (lambda h, t, s, o: put(t, 0, "low_bits", 9), "section 0 low bits"),
        (lambda h, t, s, o: put(t, 0, "planes", 25), "section 0 planes"),
        (lambda h, t, s, o: put(s, 0, "block", 0), "section 0 block"),
        (lambda h, t, s, o: put(s, 0, "block", 1001), "section 0 block"),
        (lambda h, t, s, o: put(s, 0, "threshold", -1.0), "section 0 threshold"),
        (lambda h, t, s, o: put(s, 0, "threshold", np.nan), "section 0 threshold"),
        (lambda h, t, s, o: put(o, 0, "step", np.inf), "section 0 step"),
        (lambda h, t, s, o: put(o, 0, "first", -1.0), "section 0 first"),
        (lambda h, t, s, o: put(o, 0, "rest", np.nan), "section 0 rest"),
        (lambda h, t, s, o: put(t, 1, "count", 9), "section 1 count"),
        (lambda h, t, s, o: put(t, 1, "low_bits", 1), "section 1 levels"),
        (lambda h, t, s, o: put(t, 2, "planes", 1), "section 2 levels"),
    ],
)
def test_a_forged_field_is_named(change, field):
    with pytest.raises(FrameError, match=f"frame field {field}"):
        decode_frame(forged(change), layout=2**63 + 5, numels=None)


def test_forged_positions_are_named_when_they_are_read():
    frame = forged(lambda h, t, s, o: put(t, 0, "count", 39))
    section = decode_frame(frame).sections[0]
    with pytest.raises(FrameError, match=r"parameter x (planes|values|positions)"):
        section.add_to(np.zeros(1000, np.float32), 1.0, "parameter x")


def test_a_frame_for_other_parameters_is_refused():
    _, frame = bucket_frame()
    with pytest.raises(FrameError, match="numel"):
        decode_frame(frame, numels=[1000, 10])
    with pytest.raises(FrameError, match="sections"):
        gs.decode(frame)


@pytest.mark.parametrize(
    "frame",
    [torch.zeros(0, dtype=torch.uint8), torch.zeros(100), torch.zeros(4, 4, dtype=torch.uint8)],
)
def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(FrameError):
        gs.decode(frame)


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        (torch.tensor([3, 2], dtype=torch.int32), torch.zeros(2)),
        (torch.tensor([0, 10], dtype=torch.int32), torch.zeros(2)),
        (torch.tensor([-1, 2], dtype=torch.int32), torch.zeros(2)),
        (torch.tensor([1, 2]), torch.zeros(2)),
        (torch.tensor([1, 2], dtype=torch.int32), torch.zeros(3)),
        (torch.tensor([1, 2], dtype=torch.int32), torch.zeros(2, dtype=torch.float16)),
    ],
)
def test_encode_refuses_what_would_not_decode(indices, values):
    with pytest.raises(ValueError, match=r"indices|values"):
        gs.encode(indices, values, 10)


def test_what_is_no_tensor_is_named():
    indices, values = torch.tensor([1, 2], dtype=torch.int32), torch.ones(2)
    with pytest.raises(TypeError, match=r"indices must be a torch\.Tensor, got list"):
        gs.encode([1, 2], values, 10)
    with pytest.raises(TypeError, match=r"values must be a torch\.Tensor, got ndarray"):
        gs.encode(indices, values.numpy(), 10)
    for read in (gs.decode, gs.inspect):
        with pytest.raises(TypeError, match=r"got bytes.*torch\.frombuffer"):
            read(gs.encode(indices, values, 10).numpy().tobytes())


def test_the_first_index_out_of_order_is_named():
    with pytest.raises(ValueError, match="number 2 is 4 behind 4"):
        gs.encode(torch.tensor([1, 4, 4], dtype=torch.int32), torch.ones(3), 10)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mode": "int8"}, "mode must be one of"),
        ({"threshold": -1.0}, "threshold must be 0 or more"),
        ({"threshold": 1.5}, "magnitude of the threshold 1.5 or more"),
        ({"threshold": 1e39}, "threshold must be 0 or more and a float32"),
        ({"row": -1}, "row"),
        ({"row": 1.5}, "whole numbers"),
        ({"residual": torch.zeros(9)}, "residual must be"),
        ({"residual": torch.zeros(10, dtype=torch.float64)}, "residual must be"),
    ],
)
def test_encode_refuses_options_that_make_no_sense(options, complaint):
    indices, values = torch.tensor([1, 2], dtype=torch.int32), torch.ones(2)
    with pytest.raises(ValueError, match=complaint):
        gs.encode(indices, values, 10, **options)
