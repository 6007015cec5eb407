"""The plan of each bucket, kept over steps with what else is known of it."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from gradsieve.bucket.layout import BucketLayout
from gradsieve.bucket.overhead import coding_overhead
from gradsieve.bucket.plan import Plan
from gradsieve.codec import Values
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import WholeGroup


class Divides(Protocol):
    """Divides buckets into parts: a `FrameTopology`."""

    @property
    def name(self) -> str:
        """A plan is kept for each name."""

    def plan(self, layout: BucketLayout, place: int, places: int) -> Plan:
        """Divide a bucket, for the rank in one of its places."""


class Plans:
    def __init__(self, values: Values) -> None:
        self._values = values
        self._layouts: dict[tuple[int, ...], BucketLayout] = {}
        self._plans: dict[tuple[str, int], Plan] = {}
        self._digests: dict[int, int] = {}
        self._overheads: dict[int, float] = {}

    def layout(self, parameters: Sequence[ParameterState], owners: int = 1) -> BucketLayout:
        """The units of a bucket with these parameters, in its order; `owners` as there."""
        key = owners, *map(id, parameters)
        if key not in self._layouts:
            self._layouts[key] = BucketLayout(parameters, owners)
        return self._layouts[key]

    @property
    def groups(self) -> list[WholeGroup]:
        """The groups that parameters which travel whole are in now."""
        units = [unit for layout in self._layouts.values() for unit in layout.units]
        return [unit for unit in units if isinstance(unit, WholeGroup) and unit.is_current]

    def plan(
        self,
        topology: Divides,
        parameters: Sequence[ParameterState],
        place: int,
        places: int,
    ) -> Plan:
        """Which parts of a bucket frames carry, and which part is this rank's.

        Args:
            place, places: as `FrameTopology.place` returns them.
        """
        layout = self.layout(parameters, places)
        key = topology.name, id(layout)
        if key not in self._plans:
            self._plans[key] = topology.plan(layout, place, places)
        return self._plans[key]

    def forget(self) -> None:
        """Make all plans anew: a parameter lies otherwise in its bucket from now on."""
        for kept in (self._plans, self._digests, self._overheads):
            kept.clear()

    def digest(self, plan: Plan) -> int:
        """A digest of what both sides of a frame must share: shapes, options and bases."""
        key = id(plan)
        if key not in self._digests:
            lines = [line for unit in plan.units for line in unit.described]
            options = [f"values={self._values}", f"parts={len(plan.parts)}"]
            self._digests[key] = digest_of([*options, *lines])
        bases = [p.rotation.fingerprint for p in plan.pruned if p.rotation is not None]
        if not bases:
            return self._digests[key]
        return digest_of([str(self._digests[key]), *map(str, bases)])

    def overhead(self, plan: Plan, ranks: int) -> float:
        """Seconds that coding takes however little is sent; measured at the first call."""
        key = id(plan)
        if key not in self._overheads:
            self._overheads[key] = coding_overhead(plan, self._values, ranks)
        return self._overheads[key]


def digest_of(lines: Iterable[str]) -> int:
    """64 bits of a hash over lines."""
    text = "\n".join(lines).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
