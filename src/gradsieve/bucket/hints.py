"""Hints to the user about options that do not pay, or would."""

from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.rotation.cost import RotationCost, ScarceBits
from gradsieve.telemetry.record import StepRecord


class Hints:
    """Tells where rotation is not worth its time or would help."""

    def __init__(self, sieve: RankSieve) -> None:
        self._sieve = sieve
        self._rotation_cost, self._scarce_bits = RotationCost(), ScarceBits()

    def end_step(self, record: StepRecord) -> None:
        """Look at a step. One rank of the job calls it."""
        if record.plain:
            return
        rotations = [p.rotation for p in self._sieve.parameters if p.rotation is not None]
        thresholds = self._sieve.thresholds
        if rotations:
            self._rotation_cost.end_step(sum(rotation.seconds for rotation in rotations))
        elif thresholds.budget is not None and not thresholds.is_early(record.step):
            self._scarce_bits.end_step(record.bits_per_parameter)
