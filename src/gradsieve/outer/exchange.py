"""The exchange of local steps. At most one is under way: it begins, arrives and is merged."""

import time

from torch import Tensor

from gradsieve.errors import SieveError
from gradsieve.exchange.collectives import own_rank
from gradsieve.outer.arrivals import Arrivals
from gradsieve.outer.buffers import BufferAverage, Buffers, assign
from gradsieve.outer.mates import Mates
from gradsieve.outer.record import OuterRecord
from gradsieve.outer.schedule import Schedule
from gradsieve.outer.under_way import UnderWay
from gradsieve.outer.weights import Flight, OuterWeights
from gradsieve.parameters.nonfinite import is_finite
from gradsieve.state import SieveState


class OuterExchange:
    """Runs the exchanges that a schedule begins and ends.

    Args:
        buffers: the statistics of the model, which travel with the last fragment.
        mates: the ranks whose weights must stay like those of this rank between exchanges.
    """

    def __init__(
        self,
        state: SieveState,
        weights: OuterWeights,
        schedule: Schedule,
        buffers: Buffers,
        mates: Mates,
    ) -> None:
        self.state, self.weights, self.schedule = state, weights, schedule
        self.buffers, self._mates = buffers, mates
        self._arrivals = Arrivals(state.engine.groups)
        self.under_way: UnderWay | None = None
        self.last: OuterRecord | None = None
        """The record of what was merged last."""
        self.records: list[OuterRecord] = []
        """The records of merged exchanges that `OuterSync` has not yet taken."""
        self.in_residuals: set[str] | None = None
        """What `Groupings` has found of an exchange that failed, while the ranks have not met in
        another group: the parameters whose steps are merged or in the residual."""

    def meet_anew(self) -> None:
        """Forget when ranks met last, because other ranks take part from now on."""
        self._arrivals = Arrivals(self.state.engine.groups)

    def begin(self, fragment: int, delay: int) -> None:
        """Begin to exchange the pseudo-gradients of a fragment.

        Args:
            delay: the number of inner steps until `end`.

        Raises:
            ExchangeError: a rank has died or stalled.
            SieveError: on every rank, where the ranks differ.
        """
        start, meeting = time.perf_counter(), self._arrivals.come()
        state, schedule, engine = self.state, self.schedule, self.state.engine
        flight = self.weights.begin(fragment, goes_on=delay > 0)
        under_way = UnderWay(flight, schedule.every, max(1, schedule.since))
        buckets = under_way.flight.buckets
        state.begin_step(buckets[0])
        engine.worker.submit(meeting)
        buffers = self.buffers.now()
        if buffers and fragment == schedule.fragments - 1:
            under_way.buffer_average = BufferAverage(buffers, engine.groups.group)
            begin = under_way.buffer_average.begin
            if engine.groups.is_managed:
                engine.worker.submit(begin)
            else:
                begin()
        under_way.futures = [engine.exchange(bucket) for bucket in buckets]
        under_way.seconds = time.perf_counter() - start
        self.under_way = under_way

    def arrive(self) -> None:
        """Wait for the averages of the exchange that is under way, if any.

        Raises:
            ExchangeError: a rank has died or stalled.
            SieveError: on every rank, where the weights of a rank are not finite.
        """
        under_way = self.under_way
        if under_way is None or under_way.has_arrived:
            return
        start = time.perf_counter()
        self.state.end_step()
        under_way.wait()
        self._require_finite(under_way.flight)
        under_way.has_arrived, under_way.exchange = True, self.state.last
        under_way.seconds += time.perf_counter() - start

    def end(self) -> None:
        """Wait for the averages and merge them into the weights. Raises what `arrive` raises."""
        under_way = self.under_way
        if under_way is None:
            return
        self.arrive()
        start = time.perf_counter()
        # Bases may be turning. A checkpoint has them, and the residuals, as they are afterwards.
        self.state.engine.finish()
        self.weights.end(under_way.flight, self.unsent)
        assign(self.buffers.now(), under_way.buffers)
        self.under_way = None
        under_way.seconds += time.perf_counter() - start
        self._record(under_way)

    def finish(self) -> None:
        """Exchange what has not been exchanged, and leave all ranks with the outer weights.

        Raises what `begin` and `arrive` raise.
        """
        self.schedule.finish(self.begin, self.end)
        self.weights.settle()

    def unsent(self, name: str) -> Tensor | None:
        """Return what a rank keeps in its weights of a parameter. No bases may be turning."""
        parameter = self.state.sieve.parameters.states[name]
        if self._mates.are_inside and parameter.inherited.flat is not None:
            # Mates learn the same, but send different parts of it once they inherit differently.
            return None
        return parameter.unsent()

    def _record(self, under_way: UnderWay) -> None:
        exchange = under_way.exchange
        if exchange is None:
            return
        # A rank may hold an empty shard of every parameter.
        elements = max(1, self.weights.numel) * under_way.since
        self.last = OuterRecord(
            step=self.schedule.began,
            every=under_way.every,
            fragment=under_way.flight.fragment,
            exchange=exchange,
            bits_per_parameter=8 * exchange.frame_bytes / elements,
            slowest_rank=self._arrivals.slowest_rank,
            waited_seconds=self._arrivals.waited_seconds,
            exposed_seconds=under_way.seconds + self.state.sieve.step.clock.stolen_seconds,
        )
        self.records.append(self.last)

    def _require_finite(self, flight: Flight) -> None:
        if all(is_finite(bucket.flat) for bucket in flight.buckets):
            return
        record = self.state.last
        sources = {} if record is None else record.nonfinite_parameters
        me = own_rank(self.state.engine.groups.group)
        whose = "this" if me in sources else "another"
        named = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in sources.items())
        raise SieveError(
            f"the weights of {whose} rank were not finite when inner step {self.schedule.began} "
            f"ended ({named}); no rank has taken them over. Go back to a checkpoint, with a lower "
            "learning rate of the inner optimizer or with its gradients clipped."
        )
