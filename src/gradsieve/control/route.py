"""The way that gradients take in a step: as the user has set it, or chosen by what steps take."""

from gradsieve.bucket.plan import Way
from gradsieve.control.choice import Choice
from gradsieve.control.reports import Accounts
from gradsieve.control.steering import Steering
from gradsieve.exchange.cost import LinkCost, NodeCost
from gradsieve.exchange.groups import Members
from gradsieve.exchange.probe import agreed, measure_link
from gradsieve.exchange.ways import EXCHANGES, Exchange
from gradsieve.parameters.registry import Registry
from gradsieve.telemetry.clock import Tally

__all__ = ["EXCHANGES", "Exchange", "Route", "measure"]

MEASURE_EVERY = 500
"""Steps from one look at the link to the next, which takes some 50 ms."""


class Route:
    """
    Args:
        may_be_dense: of "auto": everything may travel, where that is quicker.
    """

    def __init__(self, exchange: Exchange, *, may_be_dense: bool = True) -> None:
        self.exchange: Exchange = exchange
        self._may_be_dense = may_be_dense
        self.accounts = Accounts()
        self._choice: Choice | None = None
        self._measured_before = 0
        """Steps."""
        self.is_alone = False
        """The group is of one rank, which has nobody to send to."""

    @property
    def way(self) -> Exchange:
        """That the gradients take in this step."""
        if self.is_alone:
            return "dense"
        if self.exchange != "auto":
            return self.exchange
        return "gather" if self._choice is None else self._choice.way

    @property
    def frame_way(self) -> Way:
        """The way of a step in which frames travel."""
        way = self.way
        if way == "auto" or way == "dense" or way == "dense-fp16":
            raise ValueError(f"no frames travel in a step that is {way}")
        return way

    @property
    def reason(self) -> str:
        """Why, where it was chosen."""
        if self.is_alone:
            return "one rank has nobody to send to"
        return self._choice.reason if self._choice is not None and self.exchange == "auto" else ""

    @property
    def is_dense(self) -> bool:
        """Everything travels in this step, what residuals hold as well."""
        return self.way in ("dense", "dense-fp16")

    def begin_step(self, members: Members, registry: Registry, turns: int = 1) -> None:
        """Measure the link, as soon as it is known what travels, and again from time to time.

        Args:
            turns: as in `SieveState.bind_named`.
        """
        self._measured_before += 1
        self.is_alone = members.group.size() == 1
        if self.exchange == "auto" and registry.states and not self.is_alone:
            if self._choice is None:
                gradient_bytes = sum(p.numel * p.element_size for p in registry) // turns
                self._choice = Choice(
                    members.group.size(),
                    gradient_bytes,
                    *measure(members),
                    may_be_dense=self._may_be_dense,
                )
                self._measured_before = 0
            elif self._measured_before >= MEASURE_EVERY:
                self._choice.link, self._choice.nodes = measure(members)
                self._measured_before = 0
        self.accounts.begin_step()

    def end_step(self, tally: Tally, steering: Steering, window: float) -> None:
        """Set way and scale of the next step by what the ranks have told of one before.

        Args:
            window: seconds from the first bucket to the last.
        """
        choice = self._choice if self.exchange == "auto" else None
        if self.is_dense:
            self.accounts.end_dense_step()
            if choice is not None:
                choice.end_dense_step()
            return
        if tally.nonfinite_anywhere:
            self.accounts.skip_step()
            return
        slowest = self.accounts.end_sieve_step(tally, window=window, scale=steering.scale)
        if slowest is None:
            return
        if steering.budget is not None:
            steering.budget.follow(slowest, tally.buckets)
        if choice is not None:
            before = choice.frame_way
            choice.end_sieve_step(slowest, tally.buckets)
            if choice.frame_way != before and steering.budget is not None:
                steering.budget.forget_way()


def measure(members: Members) -> tuple[LinkCost, NodeCost | None]:
    """The link of all ranks, and those within and across nodes."""
    everyone, nodes = members.everyone, members.several_nodes()
    link = measure_link(everyone)
    if nodes is None:
        return link, None
    across = agreed(everyone, measure_link(nodes.across))
    within = agreed(everyone, measure_link(nodes.within))
    return link, NodeCost(nodes.size, within, across)
