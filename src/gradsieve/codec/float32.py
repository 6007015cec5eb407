"""float32 as it is."""

import numpy as np

from gradsieve.codec.coding import Floats
from gradsieve.codec.float_format import FloatFormat


class Float32(FloatFormat):
    """The values themselves, 4 bytes each."""

    stored = np.dtype("<f4")
    is_exact = True

    def round(self, values: Floats) -> Floats:
        return values

    def widen(self, numbers: Floats) -> Floats:
        return numbers
