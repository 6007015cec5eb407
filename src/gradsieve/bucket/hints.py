"""Hints to the user, where another option would serve better."""

from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.rotation.cost import RotationCost, ScarceBits
from gradsieve.telemetry.record import StepRecord


class Hints:
    """Tells where rotation is not worth its time, or would help. One rank gives hints."""

    def __init__(self) -> None:
        self._rotation_cost, self._scarce_bits = RotationCost(), ScarceBits()

    def give(self, record: StepRecord, sieve: RankSieve) -> None:
        """Look at a step that has ended."""
        if record.plain:
            return
        rotations = [p.rotation for p in sieve.parameters if p.rotation is not None]
        if rotations:
            self._rotation_cost.end_step(sum(rotation.seconds for rotation in rotations))
        elif sieve.thresholds.budget is not None:
            self._scarce_bits.end_step(record.bits_per_parameter)
