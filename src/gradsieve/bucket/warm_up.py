"""Compile the kernels before the first step, so that no rank waits for it there."""

import time
from functools import cache
from threading import Timer

import numpy as np
import torch
from numba.core.event import Event, Listener, install_listener

from gradsieve.codec import Grid, Values, decode_frame, encode_frame, pruned_section, whole_section
from gradsieve.rotation import Rotation
from gradsieve.runtime.notices import tell
from gradsieve.sieve import measure, sample_magnitudes, select

NOTICE_AFTER = 2.0
"""Seconds of compiling after which the user is told."""


@cache
def warm_up(values: Values, error_feedback: bool = True, rotates: bool = False) -> None:
    """Run every kernel that training with these options calls, on a few numbers.

    The first run on a machine compiles them, in about half a minute on one core, and keeps them on
    disk. In the first step all ranks would wait for that, and its time would enter the measured
    step time.
    """
    with install_listener("numba:compile", Told()):
        ones = torch.ones(8, dtype=torch.float32, device="cpu")
        zeros = torch.zeros_like(ones)
        measure(ones)
        measure(ones, zeros)
        sample_magnitudes(ones, zeros, 0)
        indices, numbers, _ = select(ones, zeros, 0.5)
        # The encoder gets no residual for parameters on a device, nor in `coding_overhead`.
        residuals = [zeros.numpy(), None] if error_feedback else [None]
        pruned = [
            pruned_section(indices.numpy(), numbers.numpy(), 8, 0.5, values, residual=residual)
            for residual in residuals
        ]
        if rotates:
            grid = Grid.of_squares(ones[:4].numpy(), ones[:8].numpy())
            places, many = np.arange(32, dtype=np.int32), np.ones(32, np.float32)
            pruned += [
                pruned_section(
                    places,
                    many,
                    32,
                    0.5,
                    values,
                    grid=grid,
                    residual=None if residual is None else np.zeros(32, np.float32),
                )
                for residual in residuals
            ]
        # What "levels" cannot carry travels as bfloat16.
        modes: list[Values] = ["levels", "bfloat16"] if values == "levels" else [values]
        whole = [whole_section(ones.numpy(), mode) for mode in modes]
        for decoded in decode_frame(encode_frame([*pruned, *whole])).sections:
            decoded.add_to(np.zeros(decoded.numel, np.float32), 1.0)
        if rotates:
            rotation = Rotation(2, 2, 2, ones.device)
            rotation.learn(ones[:4])
            rotation.turn([ones[:4]])
            rotation.restore(ones[:4])


class Told(Listener):
    """Tells the user about compiling once it has taken `NOTICE_AFTER` seconds in all."""

    def __init__(self) -> None:
        self._depth = 0
        self._left = NOTICE_AFTER
        self._start = 0.0
        self._timer = Timer(0, tell)

    def on_start(self, event: Event) -> None:
        # Compiling a function includes compiling those that it calls. Only one thread compiles.
        self._depth += 1
        if self._depth == 1:
            self._start = time.perf_counter()
            text = (
                "gradsieve: compiling for this processor, which takes up to half a minute; later "
                "starts find the machine code on disk"
            )
            self._timer = Timer(max(self._left, 0.0), tell, (text,))
            self._timer.daemon = True
            self._timer.start()

    def on_end(self, event: Event) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._timer.cancel()
            self._left -= time.perf_counter() - self._start
