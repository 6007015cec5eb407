"""Frames come back as they went in, or raise."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradsieve as gs
from gradsieve.codec import FrameError, Section, decode_frame, encode_frame
from gradsieve.codec.frame import CHECKED_FROM, HEADER, SECTION


def survivors(numel, count, seed=0):
    generator = np.random.default_rng(seed)
    indices = np.sort(generator.choice(numel, count, replace=False)).astype(np.int32)
    return indices, generator.standard_normal(count).astype(np.float32)


def bucket_frame(seed=0):
    indices, values = survivors(1000, 40, seed)
    whole = np.arange(10, dtype=np.float32)
    empty = Section(5000, 1.0, np.empty(0, np.float32), np.empty(0, np.int32))
    sections = [Section(1000, 0.5, values, indices), Section(10, 0.0, whole), empty]
    return sections, encode_frame(sections, layout=2**63 + 5, step=7)


@settings(deadline=None)
@given(numel=st.integers(0, 500), share=st.floats(0, 1), threshold=st.floats(0, 2.0**100, width=32))
def test_what_was_encoded_is_decoded(numel, share, threshold):
    indices, values = survivors(numel, int(share * numel))
    frame = gs.encode(
        torch.from_numpy(indices), torch.from_numpy(values), numel, threshold=threshold
    )
    assert frame.dtype is torch.uint8
    got = gs.decode(frame)
    np.testing.assert_array_equal(got[0].numpy(), indices)
    np.testing.assert_array_equal(got[1].numpy(), values)
    assert decode_frame(frame).sections[0].threshold == threshold


def test_a_bucket_of_parameters():
    sections, frame = bucket_frame()
    got = decode_frame(frame, layout=2**63 + 5, numels=[1000, 10, 5000])
    assert (got.step, got.layout) == (7, 2**63 + 5)
    assert [s.whole for s in got.sections] == [False, True, False]
    for mine, theirs in zip(got.sections, sections, strict=True):
        np.testing.assert_array_equal(mine.values, theirs.values)


def test_an_unaligned_frame_decodes():
    _, frame = bucket_frame()
    shifted = torch.empty(frame.numel() + 1, dtype=torch.uint8)
    shifted[1:] = frame
    assert len(decode_frame(shifted[1:]).sections) == 3


@settings(max_examples=2000, deadline=None)
@given(data=st.data())
def test_a_mutated_frame_raises(data):
    _, frame = bucket_frame()
    data_bytes = bytearray(frame.numpy().tobytes())
    kind = data.draw(st.sampled_from(["flip", "truncate", "extend", "splice"]))
    at = data.draw(st.integers(0, len(data_bytes) - 1))
    if kind == "flip":
        data_bytes[at] ^= data.draw(st.integers(1, 255))
    elif kind == "truncate":
        del data_bytes[at:]
    elif kind == "extend":
        data_bytes += bytes(data.draw(st.integers(1, 64)))
    else:
        other = bucket_frame(seed=1)[1].numpy().tobytes()
        at = max(at, 8)
        data_bytes[at:] = other[at:]
        if data_bytes == bytearray(frame.numpy().tobytes()):
            return
    with pytest.raises(FrameError, match="frame field"):
        decode_frame(torch.tensor(list(data_bytes), dtype=torch.uint8))


def forged(change):
    """A frame with a valid CRC whose content was changed before."""
    _, frame = bucket_frame()
    raw = frame.numpy().copy()
    header = raw[: HEADER.itemsize].view(HEADER)
    table = raw[HEADER.itemsize : HEADER.itemsize + 3 * SECTION.itemsize].view(SECTION)
    first = HEADER.itemsize + 3 * SECTION.itemsize
    indices = raw[first : first + 160].view("<i4")
    change(header, table, indices)
    header["crc32"] = zlib.crc32(raw[CHECKED_FROM:].tobytes())
    return torch.from_numpy(raw)


def set_item(array, index, field, value):
    array[field][index] = value


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda h, t, i: set_item(h, 0, "sections", 2**32 - 1), "sections"),
        (lambda h, t, i: set_item(h, 0, "sections", 2), "section 0"),
        (lambda h, t, i: set_item(h, 0, "layout", 1), "layout"),
        (lambda h, t, i: set_item(t, 0, "count", 2**32 - 1), "section 0 count"),
        (lambda h, t, i: set_item(t, 0, "count", 999), "section 0 count"),
        (lambda h, t, i: set_item(t, 0, "numel", 2**31), "section 0 numel"),
        (lambda h, t, i: set_item(t, 0, "threshold", -1.0), "section 0 threshold"),
        (lambda h, t, i: set_item(t, 0, "threshold", np.nan), "section 0 threshold"),
        (lambda h, t, i: set_item(t, 0, "whole", 7), "section 0 whole"),
        (lambda h, t, i: set_item(t, 1, "count", 9), "section 1 count"),
        (lambda h, t, i: i.__setitem__(0, -1), "section 0 indices"),
        (lambda h, t, i: i.__setitem__(39, 1000), "section 0 indices"),
        (lambda h, t, i: i.__setitem__(5, i[4]), "section 0 indices"),
        (lambda h, t, i: i.__setitem__(5, 999), "section 0 indices"),
    ],
)
def test_a_forged_field_is_named(change, field):
    with pytest.raises(FrameError, match=f"frame field {field}"):
        decode_frame(forged(change), layout=2**63 + 5, numels=None)


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
