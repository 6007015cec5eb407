"""Coverage-guided fuzzing of the decoder: `make fuzz`.

The fuzzer sees which branches of the checks a frame reaches; frames are damaged as in mutate.py
and sealed again, so that most get past length and CRC. The compiled loops run on memory that ends
at a forbidden page.
"""

import random
import sys

import atheris
from guarded import GuardedDecoder
from mutate import LAYOUT, MUTATIONS, NUMELS, SAMPLES, mutated, seal

from gradsieve.codec import (
    coding,
    frame,
    levels,
    pruned,
    pruned_floats,
    sized_levels,
    whole,
    whole_floats,
    whole_powers,
)

# One by one: instrumented modules would hold functions that numba cannot compile.
for function in (
    frame.decode_frame,
    frame.checked_header,
    frame.frame_bytes,
    coding.Section.add_to,
    coding.Section.survivors,
    coding.Coding.check,
    pruned.BlockedCoding.add,
    pruned.PrunedCoding.check_payload,
    pruned.BlockedCoding.open,
    pruned.BlockedCoding.survivors,
    pruned_floats.PrunedFloats.read_values,
    levels.Levels.add,
    levels.Levels.check_payload,
    levels.Levels.read_values,
    sized_levels.SizedLevels.add,
    sized_levels.SizedLevels.check_payload,
    sized_levels.SizedLevels.open,
    sized_levels.SizedLevels.survivors,
    whole_powers.WholePowers.check_size,
    whole_powers.WholePowers.values,
    whole.WholeCoding.add,
    whole.WholeCoding.check_payload,
    whole.WholeCoding.survivors,
    whole_floats.WholeFloats.check_size,
):
    atheris.instrument_func(function)

DECODER = GuardedDecoder(NUMELS, LAYOUT)


def damage(content: bytes, max_size: int, seed: int) -> bytes:
    chance = random.Random(seed)
    if len(content) < 200 or chance.random() < 0.05:
        return mutated(seed)[:max_size]
    changed = bytearray(content)
    chance.choice(MUTATIONS)(changed, chance)
    return seal(changed)[:max_size]


def decode(content: bytes) -> None:
    outcome = DECODER.decode(content)
    assert outcome.startswith(("decoded", "frame field")), outcome


if __name__ == "__main__":
    for sample in SAMPLES:
        assert DECODER.decode(sample) == "decoded"
    atheris.Setup(sys.argv, decode, custom_mutator=damage)
    atheris.Fuzz()
