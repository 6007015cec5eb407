"""float32 as it is."""

import numpy as np
from numpy.typing import NDArray

from gradsieve.codec.coding import Floats
from gradsieve.codec.float_format import FloatFormat

STORED = np.dtype("<f4")


class Float32(FloatFormat):
    """The values themselves, 4 bytes each."""

    width = STORED.itemsize
    is_exact = True

    def to_bytes(self, values: Floats) -> NDArray[np.uint8]:
        return values.astype(STORED, copy=False).view(np.uint8)

    def from_bytes(self, raw: NDArray[np.uint8]) -> Floats:
        return raw.view(STORED).astype(np.float32)
