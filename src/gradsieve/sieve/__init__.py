"""Select the gradients to send, and keep the others in the residual. One process, any device."""

from gradsieve.sieve.magnitudes import Magnitudes, sample_magnitudes
from gradsieve.sieve.moments import Moments
from gradsieve.sieve.select import DTYPES, measure, select
from gradsieve.sieve.workspace import Workspace

__all__ = [
    "DTYPES",
    "Magnitudes",
    "Moments",
    "Workspace",
    "measure",
    "sample_magnitudes",
    "select",
]
