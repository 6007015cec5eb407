"""The topology of each step: the one that the user has set, or the fastest so far."""

from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.control.budget import limits_bytes
from gradsieve.control.reports import Reports
from gradsieve.exchange.groups import Groups
from gradsieve.exchange.topology_names import Exchange
from gradsieve.telemetry.report import StepReport
from gradsieve.topology import DENSE, GATHER, TOPOLOGIES
from gradsieve.topology.choice import Choice
from gradsieve.topology.topology import AnyTopology, DenseTopology, FrameTopology

MEASURE_EVERY = 500
"""Number of steps from one measurement of the link to the next. A measurement takes some 50 ms."""


class CurrentTopology:
    """Knows the topology of the running step, and chooses the next one if it is "auto".

    Args:
        sieve: the sieve whose options name a topology or "auto". The name may be set between
            steps, to the same on all ranks.
    """

    def __init__(self, sieve: RankSieve) -> None:
        self._sieve = sieve
        self.running: AnyTopology = DENSE
        """The topology of the running step, or of the last one."""
        # Dense steps would break a budget of bytes.
        self._may_be_dense = not limits_bytes(sieve.config.policy)
        self._choice: Choice | None = None
        self._steps_since_measured = 0
        self._has_begun = False
        """Whether the optimizer knows every element from steps among other ranks."""
        self.is_alone = False
        """Whether the group has one rank only, which has nobody to send to."""

    def begin_anew(self) -> None:
        """Forget the links, because other ranks take part from now on."""
        self._choice, self._steps_since_measured, self._has_begun = None, 0, True

    @property
    def exchange(self) -> Exchange:
        """The name of the topology that is set, or "auto"."""
        return self._sieve.config.topology_name

    @property
    def is_chosen(self) -> bool:
        """Whether the fastest topology is chosen, instead of one that the user has set."""
        return self.exchange == "auto"

    def _next(self) -> AnyTopology:
        """Return the topology of a step that begins now."""
        if self.is_alone:
            return DENSE
        if not self.is_chosen:
            return TOPOLOGIES[self.exchange]
        return GATHER if self._choice is None else self._choice.topology

    @property
    def reason(self) -> str:
        """The reason why the topology was chosen; empty if the user has set it."""
        if self.is_alone:
            return "one rank has nobody to send to"
        return self._choice.reason if self._choice is not None and self.is_chosen else ""

    @property
    def averages_on_node(self) -> bool:
        """Whether the ranks of a node average their gradients before they select."""
        return isinstance(self.running, FrameTopology) and self.running.of_nodes

    @property
    def is_dense(self) -> bool:
        return isinstance(self.running, DenseTopology)

    def begin_step(self, groups: Groups, fragments: int = 1) -> None:
        """Settle the topology of a step. All ranks call it together.

        With "auto" the link is measured before the first step that prunes, and then every
        `MEASURE_EVERY` steps. Before, ranks may have set different topologies without harm.

        Args:
            fragments: the number of steps in which every parameter is exchanged once.
        """
        self.is_alone = groups.group.size() == 1
        if self.is_chosen and not (self.is_alone or self._sieve.is_before_start):
            self._measure(groups, fragments)
        self.running = self._next()

    def _measure(self, groups: Groups, fragments: int) -> None:
        """Measure the link if it is time, and the parameters are known."""
        self._steps_since_measured += 1
        parameters = self._sieve.parameters
        if self._choice is None and parameters.states:
            gradient_bytes = sum(p.numel * p.element_size for p in parameters) // fragments
            self._choice = Choice(
                groups.measure(),
                gradient_bytes,
                may_be_dense=self._may_be_dense,
                begins_low=self._sieve.thresholds.begins_low,
            )
            if self._has_begun:
                self._choice.skip_first_run()
            self._steps_since_measured = 0
        elif self._choice is not None and self._steps_since_measured >= MEASURE_EVERY:
            self._choice.links = groups.measure()
            self._steps_since_measured = 0

    def end_step(self, report: StepReport, reports: Reports) -> None:
        """Choose the topology and the scale of the next step by the reports of all ranks.

        Args:
            report: the report of this rank on the step that ends.
        """
        clock, thresholds = self._sieve.step.clock, self._sieve.thresholds
        choice = self._choice if self.is_chosen else None
        if self.is_dense:
            reports.add_dense_step(report.step)
            # The report before has been received, and is not sent again.
            reports.tell_nothing()
            if choice is not None:
                choice.end_dense_step()
            return
        if clock.nonfinite_anywhere:
            return
        slowest = reports.heard()
        reports.tell(report)
        if slowest is None:
            return
        if thresholds.budget is not None:
            thresholds.budget.follow(slowest, clock.buckets)
        if choice is not None:
            before = choice.frames
            choice.end_sieve_step(slowest, clock.buckets)
            if choice.frames is not before and thresholds.budget is not None:
                thresholds.budget.forget_topology()
