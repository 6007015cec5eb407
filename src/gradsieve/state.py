"""The state behind the hook: settings, what each parameter keeps, the account of each step."""

import math
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.agreement import Description, require_agreement
from gradsieve.bucket import Bucket
from gradsieve.budget import limits_bytes
from gradsieve.changes import Changes
from gradsieve.checkpoint import fault_of_loaded, load_sieve, require_loadable, save_sieve
from gradsieve.codec import VALUES, Values
from gradsieve.copies import (
    Copied,
    packed,
    refuse_copy,
    require_scaler,
    require_taken_up,
    take_up,
    unpack,
)
from gradsieve.defaults import exchange_or_default, policy_or_default
from gradsieve.errors import MismatchError, SieveError
from gradsieve.exchange import ExchangeWorker
from gradsieve.exchange.frames import unreachable
from gradsieve.exchange.stall import wait_for_sums
from gradsieve.loss_scale import LossScale, Scaler
from gradsieve.members import Members
from gradsieve.nonfinite import is_finite, sources
from gradsieve.parameters import ParameterState
from gradsieve.pieces import Plan
from gradsieve.plans import Plans
from gradsieve.registry import Registry
from gradsieve.requirements import (
    require_all_buckets,
    require_bucket,
    require_counts,
    require_even_division,
    require_prunable,
    require_torch,
    require_word,
)
from gradsieve.residuals import Residuals
from gradsieve.rotation import Rotation
from gradsieve.rotation.cost import RotationCost, ScarceBits
from gradsieve.route import EXCHANGES, Exchange, Route
from gradsieve.runtime.devices import Handover, catch_up
from gradsieve.runtime.modes import ordinary_tensors
from gradsieve.runtime.torch_private import is_in_backward, uncompiled
from gradsieve.sieve import Workspace
from gradsieve.steering import Steering
from gradsieve.strides import Layouts
from gradsieve.tally import Tally, computing_threads
from gradsieve.telemetry import Observer, StepRecord, Totals
from gradsieve.thresholds import Threshold
from gradsieve.warm_up import warm_up


class SieveState:
    """Settings and memory of the sieve on one rank; one state serves one model.

    Args:
        threshold: the policy that sets each parameter's threshold; None stands for
            `Budget("auto")`.
        values: how survivors travel: "levels", quantized with a dead zone of the threshold;
            "bfloat16", rounded; "float32", exact. What is not sent of a value stays in the
            residual. Parameters that travel whole are float32 with "float32", else bfloat16.
        exchange: "gather": every rank's frame goes to all others; traffic grows with their number.
            "two-shot": each rank adds up a part of the model, prunes the sum again and sends that
            to all others; traffic stays the same, the way has two legs. "hierarchical": the ranks
            of a node add up among themselves, then each carries a part of the model to the other
            nodes. "dense": an all-reduce of everything, as without the sieve; "dense-fp16": in
            float16, which loses what it rounds off.
            "auto": what is quickest on this link, looked at again and again. None: "auto" with a
            `Budget`, else "gather".
        node_size: as many consecutive ranks share a machine; if None what the launcher says
            (``LOCAL_WORLD_SIZE``).
        rotation: prune the coefficients of matrices in bases that follow the gradients, in blocks
            of at most this size, so that few of them carry most of a gradient; 0: the elements
            themselves. With 256 it takes some 1,000 operations an element and step, as much as
            training on 170 rows of input; worth it where less than a bit an element fits.
        error_feedback: keep what is pruned in a residual and add it to the next gradient; without
            it what is pruned is dropped.
        min_numel: parameters with fewer elements (biases, norms) travel whole. None: 2,048, or less
            (down to 256) where such parameters hold more than a twentieth of all elements.
        start_step: plain all-reduce before this step.
        ramp_steps: over so many steps from `start_step` on the threshold rises from 0 to the
            policy's, so that the density falls to the policy's.
        scaler: what scales the loss, a ``torch.amp.GradScaler``. Residuals and thresholds are then
            in units of the gradients without its scale, and stay right when it changes.
        process_group: the ranks that exchange; the default group if None.

    Raises:
        TypeError: `threshold` is no policy, or `scaler` has no ``get_scale()``.
        SieveError: torch is older than 2.6, or numba is told to compile nothing.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        threshold: Threshold | None = None,
        *,
        values: Values = "levels",
        exchange: Exchange | None = None,
        node_size: int | None = None,
        rotation: int = 0,
        error_feedback: bool = True,
        min_numel: int | None = None,
        start_step: int = 0,
        ramp_steps: int = 0,
        scaler: Scaler | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        require_torch()
        policy = policy_or_default(threshold)
        exchange = exchange_or_default(exchange, policy)
        require_counts(rotation=rotation, start_step=start_step, ramp_steps=ramp_steps)
        if min_numel is not None:
            require_counts(min_numel=min_numel)
        if node_size is not None and node_size < 1:
            raise ValueError(f"node_size must be 1 or more, got {node_size}")
        require_word("values", values, VALUES)
        require_word("exchange", exchange, EXCHANGES)
        warm_up(values, error_feedback, rotation > 0)
        # Settings.
        self.values: Values = values
        self.node_size = node_size
        self.rotation = rotation
        self.error_feedback = error_feedback
        self.min_numel = min_numel
        self.steering = Steering(policy, start_step, ramp_steps)
        self.loss_scale = LossScale(scaler)
        # For the user to read and set.
        self.step = 0
        self.last: StepRecord | None = None
        self.totals = Totals()
        self.on_step: Callable[[StepRecord], None] | None = None
        # Internal.
        self.observers: list[Observer] = []
        self.registry = Registry(min_numel, rotation)
        self.workspace = Workspace()
        self.tally = Tally()
        self.rotation_cost = RotationCost()
        self.scarce_bits = ScarceBits()
        self.changes = Changes()
        self.unfinished: list[torch.futures.Future[Tensor]] = []
        """All-reduces of this step."""
        self.worker = ExchangeWorker()
        self.route = Route(exchange, may_be_dense=not limits_bytes(policy))
        self.members = Members(process_group, node_size, self.route.accounts.notes)
        self.plans = Plans(self.members, values)
        self._layouts = Layouts()
        self._ddp: Callable[[], DistributedDataParallel | None] = lambda: None
        """The model; it keeps the hook's state, and neither would ever be freed."""
        self.may_be_unused = True
        """DDP throws the result of a parameter away that no rank used."""
        self.loaded_place: tuple[int, int] | None = None
        """Rank and world size of a state that was loaded."""
        self._device = torch.device("cpu")
        self._turns = 1
        self._belongs_to_weights = False
        self.copied: Copied | None = None
        """What a copy remembers until it is bound."""

    # Names.

    @ordinary_tensors()
    def bind(self, model: nn.Module, *, scaler: Scaler | None = None) -> None:
        """Name the parameters as the model does. `attach` calls it.

        Args:
            scaler: for a copy of a state that was told one, which a copy does not keep.

        Raises:
            SieveError: the state belongs to another model, or has numbered its parameters already;
                a parameter that is trained has sparse gradients or a dtype that is not taken.
            ValueError: a state of another model was loaded before, or copied.
        """
        if (copied := self.copied) is not None:
            require_scaler(copied, scaler)
            self.loss_scale = LossScale(scaler)
            take_up(self, copied, lambda: self._bind(model, named=not copied.is_numbered))
        else:
            self._bind(model)

    def _bind(self, model: nn.Module, *, named: bool = True) -> None:
        # A compiled module hides the DDP model in it.
        model = uncompiled(model)
        ignored: Collection[str] = ()
        inner = model
        if isinstance(model, DistributedDataParallel):
            require_all_buckets(model)
            # Not DDP's own module: it keeps the hook's state, and neither would ever be freed.
            inner, ignored = model.module, getattr(model, "parameters_to_ignore", ())
        require_prunable(inner, ignored)
        if named:
            self.registry.bind(inner, ignored)
        if isinstance(model, DistributedDataParallel):
            self.may_be_unused = model.find_unused_parameters or model.static_graph
            self.members.use_unless_given(model.process_group)
            self._ddp = weakref.ref(model)

    @ordinary_tensors()
    def bind_named(
        self, model: nn.Module, named: Sequence[tuple[str, Tensor]], turns: int = 1
    ) -> None:
        """As `bind`, of parameters that stand for those of the model; all of them are used.

        The state is then a part of theirs, and is saved with them.

        Args:
            turns: so many steps show all of them, each about as much.
        """
        self._turns = turns
        self._belongs_to_weights = True
        # Weights that are not finite end local steps: there is nothing to go back to. And weights
        # carry no scale of the loss.
        self.registry.can_undo, self.loss_scale = False, LossScale(None)
        self.loss_scale.watch = None
        self.registry.bind_named(model, named)
        self.may_be_unused = False
        self.members.on_host = all(parameter.is_cpu for _, parameter in named)

    @property
    def residuals(self) -> Mapping[str, Tensor]:
        """Parameter name → a copy of its residual (float32, the parameter's shape)."""
        return Residuals(self.registry.states, self.finish_exchanges)

    @property
    def owned_residuals(self) -> Mapping[str, Tensor]:
        """Parameter name → what this rank has pruned of the ranks' average in two-shot exchanges.

        A copy, float32, of the parameter's shape; 0 outside the piece that this rank adds up.
        """
        self.finish_exchanges()
        return {p.name: p.unrotated_owned() for p in self.registry}

    # A step.

    @property
    def exchange(self) -> Exchange:
        """May be set between steps, on all ranks alike."""
        return self.route.exchange

    @exchange.setter
    def exchange(self, exchange: Exchange) -> None:
        require_word("exchange", exchange, EXCHANGES)
        self.route.exchange = exchange

    @property
    def plain(self) -> bool:
        """This step is a plain all-reduce: before `start_step`, or while names are unknown."""
        return self.step < self.steering.start_step or self.registry.nameless

    def begin_step(self, first: Bucket) -> None:
        """
        Args:
            first: the step's bucket of index 0.

        Raises:
            SieveError: on every rank, where the ranks differ.
        """
        self._settle()
        self.workspace.clear()
        require_taken_up(self)
        self.loss_scale.read()
        if (model := self._ddp()) is not None:
            require_even_division(model)
        if not self.members.have_met:
            self._compare_ranks(first)
        if self.members.begin_step(self.step, self.exchange) and not self.plain:
            self.worker.submit(self.members.settle)
            self.finish_exchanges()
        self.route.begin_step(self.members, self.registry, self._turns)
        self._device = first.buffer().device
        self.tally = Tally(computing_threads(self._device))

    def follow_layout(self, bucket: Bucket) -> None:
        """Lay residuals out as the gradients lie in a bucket of DDP's; raises as `Layouts.follow`.

        Before `meet`, in the same order on all ranks.
        """
        require_bucket(bucket)
        if not is_in_backward():
            # A rank that has joined answers with zeros, which no gradient of its own shows.
            return
        if self._layouts.follow(bucket, self.registry.known, self.members.group.size()):
            self.plans.forget()

    def meet(self, bucket: Bucket) -> list[ParameterState]:
        """What the state keeps for the bucket's parameters, in the bucket's order.

        Raises:
            SieveError: on every rank, where the bucket cannot be handled.
        """
        require_bucket(bucket)
        return self.registry.meet(bucket.parameters(), last=bucket.is_last())

    @property
    def settings(self) -> tuple[str, ...]:
        """Lines of what must be alike on all ranks."""
        return (
            f"threshold={self.steering.policy}",
            f"values={self.values}",
            f"exchange={self.exchange}",
            f"rotation={self.rotation}",
            f"error_feedback={self.error_feedback}",
            f"min_numel={self.min_numel}",
            f"start_step={self.steering.start_step}",
            f"ramp_steps={self.steering.ramp_steps}",
            f"scaler={'given' if self.loss_scale.is_told else 'none'}",
        )

    def _compare_ranks(self, first: Bucket) -> None:
        if not self._belongs_to_weights:
            self.members.meet(first.buffer())
        fault = fault_of_loaded(self, first.parameters())
        mine = Description(
            settings=(
                *self.settings,
                f"step={self.step}",
                f"state loaded={fault or self.loaded_place is not None}",
            ),
            parameters=tuple(
                f"{n} {list(p.shape)} {p.dtype}"
                for n, p in self.registry.described(first.parameters())
            ),
        )
        require_agreement(mine, self.members.group)
        if fault:
            raise ValueError(fault)
        self.members.agree(self.exchange)

    def holds(self, gradient: Tensor) -> bool:
        """DDP throws the result of a parameter away that no rank used: nothing may be sent of it.

        A gradient that is zero throughout may be such a one.
        """
        if not self.may_be_unused or bool(gradient[:64].any()):
            return False
        return not bool(gradient.any())

    def plan(self, parameters: list[ParameterState]) -> Plan:
        """What this rank's frames carry of a bucket in this step."""
        return self.plans.plan(self.route.frame_way, parameters)

    def overhead(self, plan: Plan) -> float:
        """What coding takes however little is sent, where a budget asks for it."""
        return 0.0 if self.steering.budget is None else self.plans.overhead(plan)

    def put_back_survivors(self) -> None:
        """Return what this step has sent so far to the residuals."""
        self.changes.put_back(error_feedback=self.error_feedback)

    def _settle(self) -> None:
        """Clear up what a backward pass that was cut short has left: jobs, survivors, names."""
        self.finish_exchanges()
        self.put_back_survivors()
        self.steering.sizes.drop_step()
        self.registry.end_step()

    def finish_exchanges(self) -> None:
        """Wait for the communication thread; on an error nothing that was sent is lost."""
        try:
            with self.tally.waiting():
                self.worker.finish(self.members.look)
                self._finish_all_reduces()
            catch_up(self._device)
        except BaseException as error:
            mismatch = self.members.mismatch_behind(error)
            if mismatch is not None:
                self.members.part(self.worker)
            # Interrupted in the wait, the thread may still be selecting: the next step puts back.
            if self.worker.is_idle:
                self.put_back_survivors()
            if mismatch is not None and mismatch is not error:
                raise mismatch from error
            raise

    def _finish_all_reduces(self) -> None:
        """Raises ExchangeError where one failed; notes where a sum is not finite."""
        futures, self.unfinished = self.unfinished, []
        try:
            sums = wait_for_sums(futures, self.members.look)
        except MismatchError:
            raise
        except RuntimeError as error:
            raise unreachable(self.members.group, error) from error
        self.tally.nonfinite_anywhere |= not all(map(is_finite, sums))

    def end_step(self) -> None:
        """Wait for the exchanges of a step and close its account, after its last bucket.

        Here and not in DDP, which would wait next: an error raised here reaches the training loop
        as it is.
        """
        window = time.perf_counter() - self.tally.start
        exchange, reason = "plain" if self.plain else self.route.way, self.route.reason
        self.finish_exchanges()
        skipped = self.tally.nonfinite_anywhere
        if not self.plain:
            self.route.end_step(self.tally, self.steering, window)
        nonfinite = self._skip_step() if skipped else {}
        self.changes.keep()
        self.registry.end_step()
        self.steering.sizes.end_step()
        if self.loss_scale.watch is not None and not self.tally.plain:
            self.loss_scale.watch.see(self.tally.moments, skipped=skipped)
        self.last = self.tally.record(
            self.step,
            residual_norm=self._residual_norm(),
            exchange=exchange,
            reason=reason,
            loss_scale=self.loss_scale.now,
            nonfinite_parameters=nonfinite,
        )
        self.totals.add(self.last)
        # Before residuals and bases begin to turn.
        for observer in list(self.observers):
            observer.end_step(self.last)
        self.step += 1
        rotations = [p.rotation for p in self.registry if p.rotation is not None]
        if any(rotation.is_due for rotation in rotations):
            device = next(p.device for p in self.registry if p.rotation is not None)
            asked = Handover(device)
            self.worker.submit_local(lambda: self._turn(asked))
        if not self.last.plain and self.members.group.rank() == 0:
            self._tell_of_rotation(rotations, self.last.bits_per_parameter)
        if self.on_step is not None:
            self.on_step(self.last)

    def _skip_step(self) -> dict[int, list[str]]:
        """Leave nothing of this step behind: whoever scales the loss skips it on every rank.

        Returns:
            As `StepRecord.nonfinite_parameters`.
        """
        if self._belongs_to_weights:
            self.put_back_survivors()
        else:
            self.changes.drop()
        self.steering.sizes.drop_step()
        return sources(self.members.everyone, self.tally.nonfinite_names)

    def _tell_of_rotation(self, rotations: Sequence[Rotation], bits: float) -> None:
        if rotations:
            self.rotation_cost.end_step(sum(rotation.seconds for rotation in rotations))
        elif self.steering.budget is not None:
            self.scarce_bits.end_step(bits)

    def _turn(self, asked: Handover) -> None:
        """In the communication thread, while the optimizer and the next forward pass run."""
        with asked.taken_over():
            for parameter in self.registry:
                parameter.turn(self.members.group.size(), self.members.add_up_on_node)

    def _residual_norm(self) -> float:
        if not self.error_feedback:
            return 0.0
        pruned = [p for p in self.registry if not (p.whole or p.is_empty)]
        if self.tally.nonfinite_anywhere:
            # The moments are those of a step that was taken back.
            norms = [float(torch.linalg.vector_norm(p.flat_residual())) for p in pruned]
        else:
            squares = [
                p.moments.unsent_square_sum + p.squared_remainder for p in pruned if p.moments
            ]
            norms = [math.sqrt(sum(squares))]
        remainders = [group.remainder for group in self.plans.groups]
        return math.hypot(*norms, *(float(torch.linalg.vector_norm(r)) for r in remainders))

    # Copies.

    @property
    def arguments(self) -> dict[str, Any]:
        """Those that make a state with the same settings, for any group."""
        return {
            "threshold": self.steering.policy,
            "values": self.values,
            "exchange": self.exchange,
            "node_size": self.node_size,
            "rotation": self.rotation,
            "error_feedback": self.error_feedback,
            "min_numel": self.min_numel,
            "start_step": self.steering.start_step,
            "ramp_steps": self.steering.ramp_steps,
        }

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the settings and what is kept of the parameters, and must be bound anew.

        Raises:
            TypeError: the state is that of an `OuterSync`.
        """
        if self._belongs_to_weights:
            refuse_copy("the state of an OuterSync", "save outer.state_dict() instead")
        return packed(self)

    def __setstate__(self, found: dict[str, Any]) -> None:
        unpack(self, found)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """What this rank must save to go on exactly; loads under ``weights_only=True``.

        Every rank saves its own: residuals differ from rank to rank.

        Raises:
            SieveError: the state is that of an `OuterSync`.
        """
        self._require_own_checkpoint()
        return self.save()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved on the same rank, after the model's own weights.

        What is refused changes nothing. A state that is not bound to its model yet compares names
        and weights when it is, or at the first step, on all ranks.

        Raises:
            ValueError: it is no such state, or damaged, naming the field; or it is of another
                model, rank, world size, step or other settings.
            SieveError: the state is that of an `OuterSync`.
        """
        self._require_own_checkpoint()
        self.load(state)

    def _require_own_checkpoint(self) -> None:
        if self._belongs_to_weights:
            raise SieveError(
                "this state belongs to outer weights, without which its residuals mean nothing: "
                "save and load outer.state_dict(), where outer is the OuterSync"
            )

    @ordinary_tensors()
    def save(self) -> dict[str, Any]:
        self._settle()
        if self.copied is not None:
            return self.copied.saved | {"parameters": self.registry.save()}
        return save_sieve(self)

    @ordinary_tensors()
    def load(self, state: Mapping[str, Any], weights: Mapping[str, int] | None = None) -> None:
        if self.copied is not None:
            raise SieveError("this SieveState is a copy: bind it before a state is loaded")
        # What is refused leaves an unfinished step as it is.
        found = require_loadable(self, state, weights)
        self._settle()
        load_sieve(self, found)
