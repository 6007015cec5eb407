"""The plans of all buckets, made once and kept from step to step."""

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


class PlanCache:
    """The layout, plan, digest and coding overhead of each bucket, made when first asked for."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._layouts: dict[tuple[int, ...], BucketLayout] = {}
        self._plans: dict[tuple[str, int], Plan] = {}
        self._digests: dict[int, int] = {}
        self._overheads: dict[int, float] = {}

    def layout(self, parameters: Sequence[ParameterState], owners: int = 1) -> BucketLayout:
        """Return the layout of a bucket. The arguments are those of `BucketLayout`."""
        key = owners, *map(id, parameters)
        if key not in self._layouts:
            self._layouts[key] = BucketLayout(parameters, owners)
        return self._layouts[key]

    @property
    def groups(self) -> list[WholeGroup]:
        """The groups to which the whole parameters belong at present."""
        units = [unit for layout in self._layouts.values() for unit in layout.units]
        return [unit for unit in units if isinstance(unit, WholeGroup) and unit.is_current]

    def plan(
        self,
        topology: Divides,
        parameters: Sequence[ParameterState],
        place: int,
        places: int,
    ) -> Plan:
        """Return which parts of a bucket frames carry, and which part is this rank's own.

        Args:
            parameters: the parameters, in the order of the bucket.
            place, places: the number of this rank's part and of all parts, as
                `FrameTopology.place` returns them.
        """
        layout = self.layout(parameters, places)
        key = topology.name, id(layout)
        if key not in self._plans:
            self._plans[key] = topology.plan(layout, place, places)
        return self._plans[key]

    def forget(self) -> None:
        """Drop all plans, because the layout of a parameter in its bucket has changed."""
        for kept in (self._plans, self._digests, self._overheads):
            kept.clear()

    def digest(self, plan: Plan) -> int:
        """Return a digest of what both sides of a frame must share: shapes, options and bases."""
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
        """Return the seconds that coding takes however little is sent, measured once."""
        key = id(plan)
        if key not in self._overheads:
            self._overheads[key] = coding_overhead(plan, self._values, ranks)
        return self._overheads[key]


def digest_of(lines: Iterable[str]) -> int:
    """Return a 64-bit hash of the lines."""
    text = "\n".join(lines).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
