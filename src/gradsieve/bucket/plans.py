"""The plan of each bucket, and what is known of it once for all steps."""

from collections.abc import Sequence

from gradsieve.bucket.layout import BucketLayout
from gradsieve.bucket.plan import Plan, Way, plan_for
from gradsieve.codec import Values
from gradsieve.control.overhead import coding_overhead
from gradsieve.exchange.agreement import digest
from gradsieve.exchange.groups import Members
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import WholeGroup


class Plans:
    def __init__(self, members: Members, values: Values) -> None:
        self._members, self._values = members, values
        self._buckets: dict[tuple[int, ...], BucketLayout] = {}
        self._plans: dict[tuple[Way, int], Plan] = {}
        self._layouts: dict[int, int] = {}
        self._overheads: dict[int, float] = {}

    def bucket(self, parameters: Sequence[ParameterState], owners: int = 1) -> BucketLayout:
        """The units of a bucket with these parameters, in its order; `owners` as there."""
        key = owners, *map(id, parameters)
        if key not in self._buckets:
            self._buckets[key] = BucketLayout(parameters, owners)
        return self._buckets[key]

    @property
    def groups(self) -> list[WholeGroup]:
        """Those that parameters which travel whole are in now."""
        units = [unit for bucket in self._buckets.values() for unit in bucket.units]
        return [unit for unit in units if isinstance(unit, WholeGroup) and unit.is_current]

    def plan(self, way: Way, parameters: Sequence[ParameterState]) -> Plan:
        """What this rank's frames carry of a bucket, and to whom they go."""
        place, places = self._members.place(way)
        bucket = self.bucket(parameters, 1 if way == "gather" else places)
        key = way, id(bucket)
        if key not in self._plans:
            self._plans[key] = plan_for(way, bucket, place, places)
        return self._plans[key]

    def forget(self) -> None:
        """A parameter lies otherwise in its bucket from now on."""
        for kept in (self._plans, self._layouts, self._overheads):
            kept.clear()

    def layout(self, plan: Plan) -> int:
        """Digest of what both sides of a frame must share: shapes, settings and bases."""
        key = id(plan)
        if key not in self._layouts:
            lines = [line for unit in plan.units for line in unit.described]
            settings = [f"values={self._values}", f"parts={len(plan.parts)}"]
            self._layouts[key] = digest([*settings, *lines])
        bases = [p.rotation.fingerprint for p in plan.pruned if p.rotation is not None]
        return digest([str(self._layouts[key]), *map(str, bases)]) if bases else self._layouts[key]

    def overhead(self, plan: Plan) -> float:
        """Seconds that coding takes however little is sent; measured at the first call."""
        key = id(plan)
        if key not in self._overheads:
            ranks = self._members.group.size()
            self._overheads[key] = coding_overhead(plan, self._values, ranks)
        return self._overheads[key]
