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
from gradsieve.codec.pruned import PrunedCoding
from gradsieve.codec.pruned_floats import PrunedFloats
from gradsieve.codec.whole_floats import WholeFloats


class Kind(IntEnum):
    """The number of a coding on the wire."""

    WHOLE_FLOAT32 = 0
    WHOLE_BFLOAT16 = 1
    FLOAT32 = 2
    BFLOAT16 = 3
    LEVELS = 4


C = TypeVar("C", bound=Coding)


def by_kind(*codings: C) -> Mapping[int, C]:
    """Return the codings by their kinds, to which the numbers on the wire compare equal."""
    table: dict[int, C] = {coding.kind: coding for coding in codings}
    assert len(table) == len(codings), "two codings have the same kind"
    return table


EXACT = PrunedFloats(Kind.FLOAT32, Float32())
"""The coding of survivors that others cannot carry, and of sections without survivors."""
PRUNED_CODINGS: Mapping[int, PrunedCoding] = by_kind(
    EXACT,
    PrunedFloats(Kind.BFLOAT16, Bfloat16()),
    Levels(Kind.LEVELS),
)
WHOLE_CODINGS: Mapping[int, WholeFloats] = by_kind(
    WholeFloats(Kind.WHOLE_FLOAT32, Float32()),
    WholeFloats(Kind.WHOLE_BFLOAT16, Bfloat16()),
)
CODINGS: Mapping[int, Coding] = by_kind(*PRUNED_CODINGS.values(), *WHOLE_CODINGS.values())
assert CODINGS.keys() == set(Kind), f"kinds without a coding: {set(Kind) - CODINGS.keys()}"

Values = Literal["levels", "float32", "bfloat16"]
"""How values travel, in the user's words."""
VALUES = get_args(Values)


class ValueCodings(NamedTuple):
    """The codings behind one of the user's words."""

    pruned: PrunedCoding
    """The coding of survivors."""
    whole: WholeFloats
    """The coding of parameters that are too small to prune."""


VALUE_CODINGS: Mapping[Values, ValueCodings] = {
    "levels": ValueCodings(PRUNED_CODINGS[Kind.LEVELS], WHOLE_CODINGS[Kind.WHOLE_BFLOAT16]),
    "float32": ValueCodings(EXACT, WHOLE_CODINGS[Kind.WHOLE_FLOAT32]),
    "bfloat16": ValueCodings(PRUNED_CODINGS[Kind.BFLOAT16], WHOLE_CODINGS[Kind.WHOLE_BFLOAT16]),
}
assert VALUE_CODINGS.keys() == set(VALUES), "Values and VALUE_CODINGS have different words"
