"""Compiling ahead of the first step."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Timer

import torch

from gradsieve.codec import Values, decode_frame, encode_frame, pruned_section, whole_section
from gradsieve.rotation import Rotation
from gradsieve.sieve import measure, sample_magnitudes, select

NOTICE_AFTER = 2.0
"""Seconds; loading what an earlier process has compiled takes less."""


@cache
def warm_up(values: Values, error_feedback: bool = True, rotates: bool = False) -> None:
    """Run every compiled function that training with these settings calls, on a few numbers.

    The first time on a machine they are compiled, about half a minute on one core, and kept in
    numba's cache. In the first step all ranks would wait for it, and its time be counted as theirs.
    """
    with notice("gradsieve: compiling for this processor, once; this takes about half a minute"):
        ones = torch.ones(8, dtype=torch.float32, device="cpu")
        zeros = torch.zeros_like(ones)
        measure(ones)
        measure(ones, zeros)
        sample_magnitudes(ones, zeros, 0)
        indices, numbers, _ = select(ones, zeros, 0.5)
        # Sums of a shot, and the measure of what coding takes, leave nothing in a residual.
        residuals = [zeros.numpy(), None] if error_feedback else [None]
        pruned = [
            pruned_section(indices.numpy(), numbers.numpy(), 8, 0.5, values, residual=residual)
            for residual in residuals
        ]
        whole = whole_section(ones.numpy(), values)
        for decoded in decode_frame(encode_frame([*pruned, whole])).sections:
            decoded.add_to(ones.numpy(), 1.0)
        if rotates:
            rotation = Rotation(2, 2, 2, ones.device)
            rotation.learn(ones[:4])
            rotation.turn([ones[:4]])
            rotation.restore(ones[:4])


@contextmanager
def notice(text: str) -> Iterator[None]:
    """Print it if the block takes long, once for all ranks of a machine."""
    timer = Timer(NOTICE_AFTER, print, (text,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if os.environ.get("LOCAL_RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
