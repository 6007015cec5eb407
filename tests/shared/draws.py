"""Streams of numbers that gradients look like."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

DRAWS = {
    "normal": lambda rng, size: rng.standard_normal(size, np.float32),
    "laplace": lambda rng, size: rng.laplace(size=size).astype(np.float32),
    "lognormal": lambda rng, size: (
        np.exp(rng.standard_normal(size, np.float32)) * rng.choice(np.float32([-1, 1]), size)
    ),
}


def draw_pools():
    """Four million numbers of each kind."""
    rng = np.random.default_rng(0)
    return {name: torch.from_numpy(draw(rng, 2**22)) for name, draw in DRAWS.items()}


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Two that wait for each other take ten times as long where another process has one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
