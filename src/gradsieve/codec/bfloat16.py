"""float32 rounded to its upper half."""

import numpy as np
import torch
from numpy.typing import NDArray

LARGEST = float(torch.finfo(torch.bfloat16).max)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round to the nearest, ties to even; what is finite stays finite."""
    exact = torch.from_numpy(values)
    rounded = exact.to(torch.bfloat16)
    overflowed = rounded.isinf() & exact.isfinite()
    if overflowed.any():
        rounded = torch.where(overflowed, exact.sign().mul(LARGEST).to(torch.bfloat16), rounded)
    bits: NDArray[np.int16] = rounded.view(torch.int16).numpy()
    return bits


def from_bfloat16(bits: NDArray[np.int16]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    return values
