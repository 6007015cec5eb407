"""The topology of each step: the one that the user has set, or the fastest so far."""

from gradsieve.control.budget import limits_bytes
from gradsieve.control.reports import Reports
from gradsieve.control.thresholds import Threshold
from gradsieve.exchange.groups import Groups
from gradsieve.exchange.topology_names import Exchange
from gradsieve.parameters.registry import Registry
from gradsieve.parameters.thresholding import Thresholding
from gradsieve.telemetry.clock import StepClock
from gradsieve.telemetry.report import StepReport
from gradsieve.topology import DENSE, GATHER, TOPOLOGIES
from gradsieve.topology.choice import Choice
from gradsieve.topology.topology import AnyTopology, DenseTopology, FrameTopology

MEASURE_EVERY = 500
"""Number of steps from one measurement of the link to the next. A measurement takes some 50 ms."""


class CurrentTopology:
    """Knows the topology of the running step, and chooses the next one if it is "auto".

    Args:
        exchange: the name of the topology, or "auto".
        policy: the threshold policy. A budget of bytes rules out dense steps with "auto".
    """

    def __init__(self, exchange: Exchange, policy: Threshold) -> None:
        self.exchange: Exchange = exchange
        """The name or "auto". It may be set between steps, to the same on all ranks."""
        self._may_be_dense = not limits_bytes(policy)
        self._choice: Choice | None = None
        self._steps_since_measured = 0
        self.is_alone = False
        """Whether the group has one rank only, which has nobody to send to."""

    @property
    def is_chosen(self) -> bool:
        """Whether the fastest topology is chosen, instead of one that the user has set."""
        return self.exchange == "auto"

    @property
    def now(self) -> AnyTopology:
        """The topology of this step."""
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
        topology = self.now
        return isinstance(topology, FrameTopology) and topology.of_nodes

    @property
    def is_dense(self) -> bool:
        return isinstance(self.now, DenseTopology)

    def begin_step(self, groups: Groups, parameters: Registry, turns: int = 1) -> None:
        """Connect the process groups of the topology; with "auto", measure the link if it is time.

        The link is measured once the parameters are known, and then every `MEASURE_EVERY` steps.

        Args:
            turns: the number of steps in which every parameter is exchanged once.
        """
        self._steps_since_measured += 1
        self.is_alone = groups.group.size() == 1
        if self.is_chosen and parameters.states and not self.is_alone:
            if self._choice is None:
                gradient_bytes = sum(p.numel * p.element_size for p in parameters) // turns
                self._choice = Choice(
                    groups.measure(), gradient_bytes, may_be_dense=self._may_be_dense
                )
                self._steps_since_measured = 0
            elif self._steps_since_measured >= MEASURE_EVERY:
                self._choice.links = groups.measure()
                self._steps_since_measured = 0

    def end_step(
        self, report: StepReport, reports: Reports, clock: StepClock, thresholds: Thresholding
    ) -> None:
        """Choose the topology and the scale of the next step by the reports of all ranks.

        Args:
            report: the report of this rank on the step that ends.
        """
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
