"""The settings that the payloads of all pruned parameters start with."""

from struct import Struct

import numpy as np

from gradsieve.codec.bits import float_bits, load_word, store_word
from gradsieve.runtime.compiled import compiled

UINT = np.uint64
SETTINGS = Struct("<If")
"""The length of a block, and the threshold."""
SETTINGS_BYTES = SETTINGS.size


@compiled
def write_settings(block, threshold, address):  # type: ignore[no-untyped-def]
    """Write the settings at an address, and return the address behind them."""
    store_word(address, UINT(block) | float_bits(threshold) << UINT(32))
    return address + SETTINGS_BYTES


@compiled
def read_block(address):  # type: ignore[no-untyped-def]
    """Return the length of a block, int64, and the address behind the settings."""
    return np.int64(load_word(address) & UINT(0xFFFFFFFF)), address + SETTINGS_BYTES
