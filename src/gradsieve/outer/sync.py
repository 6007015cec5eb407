"""Local steps with an outer optimizer: every rank trains apart, and now and then they meet."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.agreement import Description, require_agreement
from gradsieve.codec import Values
from gradsieve.dispatch import dispatch
from gradsieve.errors import SieveError
from gradsieve.exchange import outer_attendance
from gradsieve.outer.arrivals import Arrivals
from gradsieve.outer.buffers import BufferAverage, assign, averaged_buffers
from gradsieve.outer.record import OuterRecord
from gradsieve.outer.replicas import checksum, require_node_of, share
from gradsieve.outer.schedule import Schedule
from gradsieve.outer.under_way import UnderWay, load_under_way
from gradsieve.outer.weights import Flight, OuterOptimizer, OuterWeights, nesterov
from gradsieve.route import Exchange
from gradsieve.state import SieveState
from gradsieve.thresholds import Threshold

STATE_VERSION = 1
SAVED = frozenset(
    {
        "schedule",
        "weights",
        "optimizer",
        "optimizer_name",
        "rank",
        "sieve",
        "under_way",
        "checksum",
    }
)


class OuterSync:
    """Exchanges through the sieve what ranks have learned in some steps of their own (DiLoCo).

    Every rank trains its own copy of the model with its own optimizer. At every `every`-th call of
    `step` what its weights have moved since the last exchange, the pseudo-gradient, goes the way of
    a gradient: pruned, coded, averaged over the ranks. An outer optimizer, the same on all ranks,
    makes one step with the average, and all go on from its weights.

    Make one on every rank, after the process group; parameters and buffers are then rank 0's on
    all ranks. A checkpoint is loaded afterwards: first the model, then this.

    Args:
        model: a plain module; or a DDP model whose ranks are those of one node, which then trains
            as one among several nodes.
        every: inner steps from one exchange to the next; (least, most) with a `Budget`: as many
            between them as its thresholds ask for.
        delay: inner steps that go on while an exchange is under way; what they have added to the
            weights stays, and is a part of the next pseudo-gradient.
        fragments: parts of the model, of about the same size, that take turns within `every` steps:
            each exchange is smaller by as much.
        optimizer: makes the outer optimizer from the outer weights (float32); as a default SGD with
            a learning rate of 0.7 and Nesterov momentum of 0.9.
        offload: "cpu": outer weights, momentum and residuals stay on the host.
        threshold, values, exchange, node_size, rotation, error_feedback, min_numel: as in
            `SieveState`.
        process_group: the ranks that exchange; the default group if None.

    Raises:
        TypeError: `model` is no module, a number of steps is not whole, or `optimizer` makes no
            torch optimizer.
        ValueError: a number is out of range, there is nothing to train, the optimizer is not one of
            the outer weights, or this rank is no member of the group.
        SieveError: on every rank, where they differ; a DDP model's ranks are those that exchange.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int | Sequence[int] = 10,
        delay: int = 0,
        fragments: int = 1,
        optimizer: OuterOptimizer = nesterov,
        offload: Literal["cpu"] | None = None,
        threshold: Threshold | None = None,
        values: Values = "levels",
        exchange: Exchange | None = None,
        node_size: int | None = None,
        rotation: int = 0,
        error_feedback: bool = True,
        min_numel: int = 2048,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"OuterSync takes a torch.nn.Module, got {type(model).__name__}")
        if offload not in (None, "cpu"):
            raise ValueError(f'offload must be "cpu" or None, got {offload!r}')
        self._schedule = Schedule(every, fragments, delay)
        self.state = SieveState(
            threshold,
            values=values,
            exchange=exchange,
            node_size=node_size,
            rotation=rotation,
            error_feedback=error_feedback,
            min_numel=min_numel,
            process_group=process_group,
        )
        self._follows_budget = self._schedule.shortest < self._schedule.longest
        if self._follows_budget and self.state.steering.budget is None:
            raise ValueError(
                f"every={every!r} follows a Budget, and the threshold is "
                f"{self.state.steering.policy}; give one number"
            )
        group = self.state.members.group
        if isinstance(model, DistributedDataParallel):
            require_node_of(group, model)
            model = model.module
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        device = None if offload is None else torch.device(offload)
        self._buffers = averaged_buffers(model)
        with outer_attendance(group):
            require_agreement(self._description([*named, *model.named_buffers()]), group)
        share([*model.parameters(), *model.buffers()], group)
        self._weights = OuterWeights(named, optimizer, fragments, device)
        made = f"optimizer={type(self.optimizer).__name__} {self.optimizer.defaults}"
        require_agreement(Description(settings=(made,), parameters=()), group)
        self.state.bind_named(model, self._weights.named, turns=fragments)
        # For the user to read and set.
        self.last: OuterRecord | None = None
        self.on_step: Callable[[OuterRecord], None] | None = None
        # Internal.
        self._model = model
        self._untold: list[OuterRecord] = []
        self._arrivals = Arrivals(self.state.members)
        self._under_way: UnderWay | None = None
        self._has_failed = False

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The outer one; its learning rate may be set between steps, on all ranks alike."""
        return self._weights.optimizer

    @property
    def every(self) -> int:
        """Inner steps from one exchange of a parameter to the next."""
        return self._schedule.every

    @property
    def is_exchanging(self) -> bool:
        """An exchange is under way."""
        return self._under_way is not None

    @property
    def inner_steps(self) -> int:
        """Calls of `step` so far."""
        return self._schedule.step

    def _description(self, named: Sequence[tuple[str, Tensor]]) -> Description:
        schedule = self._schedule
        return Description(
            settings=(
                f"every={[schedule.shortest, schedule.longest]}",
                f"delay={schedule.delay}",
                f"fragments={schedule.fragments}",
                *self.state.settings,
            ),
            parameters=tuple(f"{name} {list(t.shape)} {t.dtype}" for name, t in named),
        )

    # A step.

    def step(self) -> None:
        """Call it after each step of the inner optimizer, on all ranks as often.

        Raises:
            ExchangeError: a rank has died or stalled.
            SieveError: on every rank, where the weights of one are not finite; an exchange has
                failed before; a parameter is trained that was frozen when this was made.
        """
        self._require_success()
        self._require_same_parameters()
        with self._failing():
            self._schedule.advance(self._begin, self._end)
        if self._follows_budget and not self.state.route.is_dense:
            self._schedule.follow(self.state.steering.scale)
        self._tell()

    def finish(self) -> None:
        """Exchange what was learned since the last time: all ranks have the same weights then.

        Call it on all ranks before the model is judged or saved for good; a new phase begins.
        Raises as `step`.
        """
        self._require_success()
        self._require_same_parameters()
        with self._failing():
            self._schedule.finish(self._begin, self._end)
        self._tell()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What survivors come back to residuals when an exchange fails lies in the weights too."""
        try:
            yield
        except BaseException:
            self._has_failed = True
            raise

    def _begin(self, fragment: int, delay: int) -> None:
        start, meeting = time.perf_counter(), self._arrivals.come()
        state, schedule = self.state, self._schedule
        flight = self._weights.begin(fragment, goes_on=delay > 0)
        under_way = UnderWay(flight, schedule.every, max(1, schedule.since))
        buckets = under_way.flight.buckets
        state.begin_step(buckets[0])
        if self._buffers and fragment == schedule.fragments - 1:
            under_way.buffer_average = BufferAverage(self._buffers, state.members.group)
        state.worker.submit(meeting)
        under_way.futures = [dispatch(state, bucket) for bucket in buckets]
        under_way.seconds = time.perf_counter() - start
        self._under_way = under_way

    def _arrive(self, under_way: UnderWay) -> None:
        """Wait for the averages."""
        if under_way.has_arrived:
            return
        start = time.perf_counter()
        self.state.end_step()
        under_way.wait()
        self._require_finite(under_way.flight)
        under_way.has_arrived, under_way.exchange = True, self.state.last
        under_way.seconds += time.perf_counter() - start

    def _end(self) -> None:
        under_way = self._under_way
        if under_way is None:
            return
        self._arrive(under_way)
        start = time.perf_counter()
        self._weights.end(under_way.flight)
        assign(self._buffers, under_way.buffers)
        self._under_way = None
        under_way.seconds += time.perf_counter() - start
        self._record(under_way)

    def _record(self, under_way: UnderWay) -> None:
        exchange = under_way.exchange
        if exchange is None:
            return
        elements = self._weights.numel * under_way.since
        self.last = OuterRecord(
            step=self._schedule.began,
            every=under_way.every,
            fragment=under_way.flight.fragment,
            exchange=exchange,
            bits_per_parameter=8 * exchange.frame_bytes / elements,
            slowest_rank=self._arrivals.slowest_rank,
            waited_seconds=self._arrivals.waited_seconds,
            exposed_seconds=under_way.seconds + self.state.tally.stolen_seconds,
        )
        self._untold.append(self.last)

    def _tell(self) -> None:
        """Of what was merged; an error of the user's function is none of an exchange."""
        records, self._untold = self._untold, []
        for record in records:
            if self.on_step is not None:
                self.on_step(record)

    def _require_success(self) -> None:
        if self._has_failed:
            raise SieveError(
                "an exchange of local steps has failed, and weights and residuals no longer belong "
                "together: load the last checkpoint"
            )

    def _require_same_parameters(self) -> None:
        known = {id(parameter) for parameter in self._weights.inner}
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise SieveError(
                    f"parameter {name} is trained now and was frozen when OuterSync was made: the "
                    "ranks would part. Call finish, and make a new OuterSync with it."
                )

    def _require_finite(self, flight: Flight) -> None:
        if all(bool(bucket.flat.isfinite().all()) for bucket in flight.buckets):
            return
        mine = all(bool(parameter.isfinite().all()) for parameter in self._weights.inner)
        raise SieveError(
            f"the weights of {'another' if mine else 'this'} rank were not finite when inner step "
            f"{self._schedule.began} ended; no rank has taken them over. Go back to a checkpoint, "
            "with a lower learning rate of the inner optimizer or with its gradients clipped."
        )

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """What this rank must save beside its model and its optimizer to go on exactly.

        Every rank saves its own; loads under ``weights_only=True``. Waits for an exchange that is
        under way, which is merged when it would have been.

        Raises:
            ExchangeError, SieveError: as `step`.
        """
        self._require_success()
        under_way = self._under_way
        if under_way is not None:
            with self._failing():
                self._arrive(under_way)
        return {
            "version": STATE_VERSION,
            "schedule": self._schedule.save(),
            "weights": {name: w.detach().clone() for name, w in self._weights.named},
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "optimizer_name": type(self.optimizer).__name__,
            "rank": dist.get_rank(self.state.members.group),
            "sieve": self.state.save(),
            "under_way": None if under_way is None else under_way.save(),
            "checksum": checksum(self._weights.inner),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved on the same rank, after the model's own weights.

        Raises:
            ValueError: it is no such state, or one of another model, rank or optimizer; the model's
                weights are not those that were saved with it.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"expected a state of OuterSync of version {STATE_VERSION}, found version "
                f"{state.get('version')!r}"
            )
        if missing := sorted(SAVED - state.keys()):
            raise ValueError(f"the saved state lacks {', '.join(missing)}")
        self._schedule.require_fit(state["schedule"])
        saved_weights, mine = state["weights"], dict(self._weights.named)
        if {n: list(w.shape) for n, w in saved_weights.items()} != {
            n: list(w.shape) for n, w in mine.items()
        }:
            raise ValueError("the saved state is of another model: its parameters are others")
        if state["rank"] != (rank := dist.get_rank(self.state.members.group)):
            raise ValueError(
                f"this is the state of rank {state['rank']}, loaded on rank {rank}: what each rank "
                "has not sent is its own, and would be counted twice; save and load one on each"
            )
        if state["optimizer_name"] != (optimizer := type(self.optimizer).__name__):
            raise ValueError(
                f"the saved outer optimizer is {state['optimizer_name']}, this one is {optimizer}"
            )
        if state["checksum"] != checksum(self._weights.inner):
            raise ValueError(
                "the model's weights are not those that were saved with this state, on this rank: "
                "make OuterSync first, then load the model, then this state"
            )
        self.state.load(state["sieve"])
        with torch.no_grad():
            for name, weights in mine.items():
                weights.copy_(saved_weights[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load(state["schedule"])
        self._has_failed, self._untold = False, []
        saved = state["under_way"]
        self._under_way = (
            None if saved is None else load_under_way(self._weights, self._buffers, saved)
        )
