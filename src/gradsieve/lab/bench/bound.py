"""The rate–distortion bound of a distribution, by Blahut and Arimoto's iteration."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

POINTS = 201
"""The points of the grids for values and for reconstructions; odd, so that 0 is one."""
ITERATIONS = 300
SMALLEST = 1e-300
SLOPES = tuple(np.geomspace(0.02, 3000, 14).tolist())
"""The prices of squared error in bits, in units of the variance."""
MOST_BITS = 4.5
"""Above this rate the grid is coarser than the error."""
FINEST = 0.003
"""The distance between the grid's points near 0, in standard deviations."""


def rate_distortion(gradients: list[Tensor]) -> list[tuple[float, float]]:
    """Return points of the bound: pairs of bits a parameter and relative squared error.

    Each parameter is scaled to its own standard deviation, so that one bound stands for all. The
    bound is that of independent numbers: a code that uses the places of elements may lie below it.

    R. Blahut, Computation of Channel Capacity and Rate-Distortion Functions, IEEE Trans. IT 18(4),
    1972; S. Arimoto, same issue.
    """
    pooled = np.concatenate([(g / g.std()).flatten().numpy() for g in gradients])
    grid = grid_for(float(np.abs(pooled).max()))
    edges = (grid[1:] + grid[:-1]) / 2
    counts = np.bincount(np.searchsorted(edges, pooled), minlength=POINTS).astype(np.float64)
    shares = counts / counts.sum()
    energy = float((shares * grid**2).sum())
    points = (blahut_arimoto(grid, shares, slope) for slope in SLOPES)
    return [(rate, error / energy) for rate, error in points if rate < MOST_BITS]


def grid_for(largest: float) -> NDArray[np.float64]:
    """Return a grid that is fine near 0 and coarse far out."""
    half = POINTS // 2
    reach = np.arcsinh(largest / FINEST)
    return FINEST * np.sinh(np.linspace(-reach, reach, 2 * half + 1))


def blahut_arimoto(
    grid: NDArray[np.float64], shares: NDArray[np.float64], slope: float
) -> tuple[float, float]:
    """Return the bits and the squared error of one point of the bound."""
    distances = (grid[:, None] - grid[None, :]) ** 2
    likeness = np.exp(-slope * distances)
    used = np.full(grid.size, 1 / grid.size)
    for _ in range(ITERATIONS):
        normal = (likeness @ used).clip(SMALLEST)
        used = used * ((shares / normal) @ likeness)
    channel = likeness * used / (likeness @ used).clip(SMALLEST)[:, None]
    joint = shares[:, None] * channel
    output = joint.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(joint > 0, joint * np.log2(channel / output), 0.0).sum()
    return float(information), float((joint * distances).sum())
