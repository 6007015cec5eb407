"""The topology of each step: the one that the user has set, or the fastest so far."""

from gradsieve.control.budget import limits_bytes
from gradsieve.control.reports import Reports
from gradsieve.control.thresholds import Threshold
from gradsieve.exchange.groups import Groups
from gradsieve.exchange.names import Exchange
from gradsieve.parameters.registry import Registry
from gradsieve.parameters.thresholding import Thresholding
from gradsieve.telemetry.clock import StepClock
from gradsieve.telemetry.report import StepReport
from gradsieve.topology import DENSE, GATHER, TOPOLOGIES
from gradsieve.topology.choice import Choice
from gradsieve.topology.topology import AnyTopology, DenseTopology, FrameTopology

MEASURE_EVERY = 500
"""Steps from one measurement of the link to the next, which takes some 50 ms."""


class CurrentTopology:
    """
    Args:
        exchange: the topology's name, or "auto".
        policy: with "auto", a budget of bytes rules out steps in which everything travels.
    """

    def __init__(self, exchange: Exchange, policy: Threshold) -> None:
        self.exchange: Exchange = exchange
        """May be set between steps, on all ranks alike."""
        self._may_be_dense = not limits_bytes(policy)
        self._choice: Choice | None = None
        self._steps_since_measured = 0
        self.is_alone = False
        """The group is of one rank, which has nobody to send to."""

    @property
    def is_chosen(self) -> bool:
        """The topology is not the user's but the fastest so far."""
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
        """Why it was chosen; empty where it was not."""
        if self.is_alone:
            return "one rank has nobody to send to"
        return self._choice.reason if self._choice is not None and self.is_chosen else ""

    @property
    def averages_on_node(self) -> bool:
        """The ranks of a node average their gradients before they select."""
        topology = self.now
        return isinstance(topology, FrameTopology) and topology.of_nodes

    @property
    def is_dense(self) -> bool:
        return isinstance(self.now, DenseTopology)

    def begin_step(self, groups: Groups, parameters: Registry, turns: int = 1) -> None:
        """Measure the link, as soon as it is known what travels, and again from time to time.

        Args:
            turns: number of steps that show all parameters, each about as many.
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
        """Choose the topology and scale of the next step by what the ranks have told.

        Args:
            report: of the step that ends.
        """
        choice = self._choice if self.is_chosen else None
        if self.is_dense:
            reports.add_dense_step(report.step)
            # What was told before is heard.
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
