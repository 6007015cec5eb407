"""The table of codings. Everything that depends on a coding asks the object in this table.

To add a coding of values:

1. Write one class in a file of its own. A format that gives every value the same number of bytes
   derives from `FloatFormat` (see `float32.py`): it says how values become bytes, and how bytes
   become values. Another coding of survivors derives from `PrunedCoding` (see `levels.py`): it
   encodes a payload, and reads its values back. Its kernels are `@compiled`, in the same file.
2. Give it a number in `Kind`, and a row in the table that fits here. A float format has two: one
   for survivors, one for parameters that travel whole. The numbers are part of the wire format and
   are never used for anything else again: describe the payload in `docs/wire-format.md`.
3. If users may choose it, add its word to `Values`, with a row in `VALUE_CODINGS`.

The package refuses to be imported where a kind has no row, or a word has none. The tests damage
frames of every word in `VALUES`, so those of a new one as well.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Literal, NamedTuple, TypeVar, get_args

from gradsieve.codec.bfloat16 import Bfloat16
from gradsieve.codec.coding import Coding
from gradsieve.codec.float32 import Float32
from gradsieve.codec.levels import Levels
from gradsieve.codec.pruned import BlockedCoding, PrunedCoding
from gradsieve.codec.pruned_floats import PrunedFloats
from gradsieve.codec.sized_levels import SizedLevels
from gradsieve.codec.whole import WholeCoding
from gradsieve.codec.whole_floats import WholeFloats
from gradsieve.codec.whole_powers import WholePowers


class Kind(IntEnum):
    """The number of a coding on the wire."""

    WHOLE_FLOAT32 = 0
    WHOLE_BFLOAT16 = 1
    FLOAT32 = 2
    BFLOAT16 = 3
    LEVELS = 4
    SIZED_LEVELS = 5
    WHOLE_POWERS = 6


C = TypeVar("C", bound=Coding)


def by_kind(*codings: C) -> Mapping[int, C]:
    """Return the codings by their kinds, to which the numbers on the wire compare equal."""
    table: dict[int, C] = {coding.kind: coding for coding in codings}
    assert len(table) == len(codings), "two codings have the same kind"
    return table


EXACT = PrunedFloats(Kind.FLOAT32, Float32())
"""The coding of survivors that others cannot carry, and of sections without survivors."""
ROUNDED = PrunedFloats(Kind.BFLOAT16, Bfloat16())
LEVELS = Levels(Kind.LEVELS)
SIZED = SizedLevels(Kind.SIZED_LEVELS)
PRUNED_CODINGS: Mapping[int, PrunedCoding] = by_kind(
    EXACT,
    ROUNDED,
    LEVELS,
    SIZED,
)
ROUNDED_WHOLE = WholeFloats(Kind.WHOLE_BFLOAT16, Bfloat16())
"""The coding of whole parameters that others cannot carry."""
WHOLE_CODINGS: Mapping[int, WholeCoding] = by_kind(
    WholePowers(Kind.WHOLE_POWERS),
    WholeFloats(Kind.WHOLE_FLOAT32, Float32()),
    ROUNDED_WHOLE,
)
CODINGS: Mapping[int, Coding] = by_kind(*PRUNED_CODINGS.values(), *WHOLE_CODINGS.values())
assert CODINGS.keys() == set(Kind), f"kinds without a coding: {set(Kind) - CODINGS.keys()}"

Values = Literal["levels", "float32", "bfloat16"]
"""How values travel, in the user's words."""
VALUES = get_args(Values)


class ValueCodings(NamedTuple):
    """The codings behind one of the user's words."""

    pruned: BlockedCoding
    """The coding of survivors."""
    whole: WholeCoding
    """The coding of parameters that are too small to prune."""
    by_size: SizedLevels | None = None
    """The coding of survivors where a `Grid` says how large elements are expected to be."""


VALUE_CODINGS: Mapping[Values, ValueCodings] = {
    "levels": ValueCodings(LEVELS, WHOLE_CODINGS[Kind.WHOLE_POWERS], SIZED),
    "float32": ValueCodings(EXACT, WHOLE_CODINGS[Kind.WHOLE_FLOAT32]),
    "bfloat16": ValueCodings(ROUNDED, ROUNDED_WHOLE),
}
assert VALUE_CODINGS.keys() == set(VALUES), "Values and VALUE_CODINGS have different words"
