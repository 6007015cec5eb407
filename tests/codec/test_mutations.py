"""Damaged and forged frames: each decodes or raises FrameError, and touches nothing else."""

import os
from functools import cache

import pytest
from guarded import GuardedDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import LAYOUT, NUMELS, SAMPLES, mutated

EXAMPLES = int(os.environ.get("MUTATED_EXAMPLES", "200"))
FRAMES_AN_EXAMPLE = 100


@cache
def decoder():
    return GuardedDecoder(NUMELS, LAYOUT)


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_the_samples_decode(sample):
    assert decoder().decode(SAMPLES[sample]) == "decoded"


@settings(max_examples=EXAMPLES, deadline=None)
@given(first=st.integers(0, 2**40))
def test_mutated_frames_decode_or_raise(first):
    for seed in range(first, first + FRAMES_AN_EXAMPLE):
        assert decoder().decode(mutated(seed)).startswith(("decoded", "frame field"))
