"""The engine: one bucket (select, encode, exchange, decode), and a step from begin to end.

It joins the sieve of this rank, which knows nothing of torch.distributed, to the process groups.
"""

import math
import time
import weakref
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.bucket import Bucket
from gradsieve.bucket.hints import Hints
from gradsieve.bucket.observer import Observer
from gradsieve.bucket.plan import Plan
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.bucket.requirements import require_bucket, require_even_division
from gradsieve.bucket.strides import Layouts
from gradsieve.comparison import compare_ranks
from gradsieve.control.reports import Reports
from gradsieve.errors import MismatchError
from gradsieve.exchange.all_reduce import AllReduce
from gradsieve.exchange.frames import unreachable
from gradsieve.exchange.groups import Groups
from gradsieve.exchange.nodes import computing_threads
from gradsieve.exchange.nonfinite import sources
from gradsieve.exchange.worker import ExchangeWorker
from gradsieve.parameters.nonfinite import is_finite, note_nonfinite, placeholder_names
from gradsieve.parameters.parameter import ParameterState
from gradsieve.runtime.devices import Handover, catch_up, future_on
from gradsieve.runtime.torch_private import is_in_backward
from gradsieve.telemetry.closing import close_step
from gradsieve.telemetry.record import StepRecord
from gradsieve.topology import DENSE, AnyTopology, DenseTopology, FrameTopology
from gradsieve.topology.current import CurrentTopology
from gradsieve.topology.transport import run_exchange


class Engine:
    """Exchanges the buckets of one rank.

    In each step the training thread calls `begin_step`, then `exchange` for each bucket, then
    `end_step`. The worker's thread makes and reads the frames while the backward pass computes
    the other buckets.

    Args:
        process_group: the ranks that exchange; None takes the default group.
    """

    def __init__(self, sieve: RankSieve, process_group: dist.ProcessGroup | None) -> None:
        config = sieve.config
        self.sieve = sieve
        self.reports = Reports()
        self.topology = CurrentTopology(sieve)
        self.groups = Groups(process_group, config.node_size, self.reports.notes)
        self.worker = ExchangeWorker()
        self.observers: list[Observer] = []
        self.fragments = 1
        """Number of steps in which every parameter is exchanged once."""
        self.loaded_place: tuple[int, int] | None = None
        """Rank and world size of the state that was loaded; None if none was."""
        self._all_reduces: list[AllReduce] = []
        """The all-reduces of this step."""
        self._layouts = Layouts()
        self._ddp: weakref.ref[DistributedDataParallel] | None = None
        """The model, by a weak reference: DDP keeps the state of its hook, which keeps this."""
        self._device = torch.device("cpu")
        self._hints = Hints(sieve)

    @property
    def world_size(self) -> int:
        return self.groups.group.size()

    @property
    def _now(self) -> AnyTopology:
        """The topology of this step, which is dense where nothing is pruned."""
        return DENSE if self.sieve.is_before_start else self.topology.running

    def serve(self, model: DistributedDataParallel) -> None:
        """Exchange the gradients of this model."""
        self.groups.use_unless_given(model.process_group)
        self._ddp = weakref.ref(model)

    # One bucket.

    def exchange(self, bucket: Bucket) -> torch.futures.Future[Tensor]:
        """Begin to exchange a bucket. `end_step` waits for it.

        Returns:
            A future of the bucket's buffer, with the average of the ranks' survivors in it.

        Raises:
            SieveError: on every rank, where the bucket cannot be handled.
        """
        parameters = self._states_of(bucket)
        topology = self._now
        if isinstance(topology, DenseTopology):
            return self._all_reduce(topology, bucket, parameters)
        plan = self.sieve.plan(topology, parameters, *topology.place(self.groups))
        buffer = bucket.buffer()
        self.sieve.step.clock.buckets += 1
        return self._submit(buffer, lambda: self.exchange_frames(topology, plan, buffer))

    def _submit(self, buffer: Tensor, run: Callable[[], Tensor]) -> torch.futures.Future[Tensor]:
        """Let the worker's thread fill a buffer, and return its future."""
        future, asked = future_on(buffer.device), Handover(buffer.device)

        def job() -> None:
            with asked.taken_over():
                future.set_result(run())

        self.worker.submit(job)
        return future

    def exchange_frames(self, topology: FrameTopology, plan: Plan, buffer: Tensor) -> Tensor:
        """Replace the gradients of a bucket by the average of all ranks, in the worker's thread."""
        sieve, groups = self.sieve, self.groups
        sieve.place_residuals(plan, self.world_size, groups.add_up_on_node)
        topology.prepare(sieve.step, plan, buffer, groups)
        sections = sieve.select(plan, buffer)
        frames = sieve.encode(plan, sections)
        exchange = topology.exchange(sieve.step, plan, frames)
        contributions = run_exchange(exchange, groups, sieve.step.clock)
        return sieve.average(plan, contributions, buffer, self.world_size)

    def _all_reduce(
        self, topology: DenseTopology, bucket: Bucket, parameters: list[ParameterState]
    ) -> torch.futures.Future[Tensor]:
        """Begin to average the whole bucket; unless the step is plain, add the residuals first."""
        clock, buffer = self.sieve.step.clock, bucket.buffer()
        clock.plain = True
        clock.elements += buffer.numel()
        clock.sent_elements += buffer.numel()
        if not self.topology.is_alone:
            clock.frame_bytes += buffer.numel() * (topology.element_size or buffer.element_size())
        named = [(parameter.name, parameter.numel) for parameter in parameters]
        note_nonfinite(clock, named or placeholder_names(bucket.parameters()), buffer)
        if not self.sieve.is_before_start:
            self.sieve.give_residuals(parameters, buffer, self.world_size)
        if self.groups.is_managed:
            # In one group, all collectives of a step must come from one thread.
            return self._submit(buffer, lambda: self._all_reduced(topology, buffer))
        all_reduce = topology.reduce(buffer, self.groups)
        self._all_reduces.append(all_reduce)
        return all_reduce.average

    def average_beside(self, flags: Tensor) -> None:
        """Begin to average a small tensor beside the buckets of a step. `end_step` waits for it.

        All ranks call it after the last bucket, or none.
        """
        self._all_reduces.append(AllReduce(flags, self.groups.group, half=False))

    def _all_reduced(self, topology: DenseTopology, buffer: Tensor) -> Tensor:
        """Average a buffer in the worker's thread."""
        with self.groups.everyone.failing():
            average = topology.reduce(buffer, self.groups).finish(self.groups.look)
        self.sieve.step.clock.nonfinite_anywhere |= not is_finite(average)
        return average

    def _states_of(self, bucket: Bucket) -> list[ParameterState]:
        """Return the states of the bucket's parameters, in its order.

        The list is empty while the names of the parameters are unknown.

        Raises:
            SieveError: on every rank, where the bucket cannot be handled.
        """
        require_bucket(bucket)
        parameters = self.sieve.parameters.states_of(bucket.parameters(), last=bucket.is_last())
        if self.observers:
            gradients = bucket.gradients()
            for observer in self.observers:
                observer.see_gradients(self.sieve.step_number, parameters, gradients)
        return parameters

    def follow_layout(self, bucket: Bucket) -> None:
        """Lay out the residuals as the gradients lie in a bucket of DDP.

        It must be called before `exchange`, in the same order on all ranks. Raises what
        `Layouts.follow` raises.
        """
        require_bucket(bucket)
        if not is_in_backward():
            # A rank that has joined answers with zeros. It has no gradients that show a layout.
            return
        if self._layouts.follow(bucket, self.sieve.parameters.known, self.world_size):
            self.sieve.forget_plans()

    # A step from begin to end.

    def begin_step(self, first: Bucket) -> None:
        """Begin a step. The first step also compares the ranks.

        Args:
            first: the bucket of index 0.

        Raises:
            SieveError: on every rank, where the ranks differ.
            ValueError: the state that was loaded is that of another rank or model.
        """
        self.finish()
        sieve, groups, buffer = self.sieve, self.groups, first.buffer()
        sieve.begin_step()
        model = None if self._ddp is None else self._ddp()
        if model is not None:
            require_even_division(model)
        if not groups.have_met:
            compare_ranks(sieve, groups, first, self.loaded_place)
            groups.agree(self.topology.exchange)
        is_changed = groups.begin_step(sieve.step_number, self.topology.exchange)
        if is_changed and not sieve.is_before_start:
            self.worker.submit(groups.announce_exchange)
            self.finish()
        self.topology.begin_step(groups, self.fragments)
        self._now.connect(groups)
        self.reports.begin_step()
        self._device = buffer.device
        sieve.restart_clock(computing_threads(self._device))

    def clear_interrupted(self) -> None:
        """Undo what an interrupted backward pass has left."""
        self.finish()
        self.sieve.clear_interrupted()

    def finish(self) -> None:
        """Wait for the worker and the all-reduces.

        On an error, the survivors return to the residuals before it is raised, so that nothing
        that was sent is lost.
        """
        try:
            with self.sieve.step.clock.waiting():
                self.worker.finish(self.groups.look)
                self._finish_all_reduces()
            catch_up(self._device)
        except BaseException as error:
            for all_reduce in self._all_reduces:
                all_reduce.leave()
            self._all_reduces = []
            mismatch = self.groups.mismatch_behind(error)
            if mismatch is not None:
                self.groups.part(self.worker)
            # After an interrupted wait the worker may still be selecting. The next step then puts
            # the survivors back.
            # Where the ranks may meet again in another group, it is settled there who has what.
            if self.worker.is_idle and not self.groups.is_managed:
                self.sieve.put_back()
            if mismatch is not None and mismatch is not error:
                raise mismatch from error
            raise

    def _finish_all_reduces(self) -> None:
        """Wait for the all-reduces, and note whether an average is not finite.

        Raises:
            ExchangeError: an all-reduce has failed.
        """
        try:
            averages = [all_reduce.finish(self.groups.look) for all_reduce in self._all_reduces]
        except RuntimeError as error:
            if isinstance(error, MismatchError):
                raise
            raise unreachable(self.groups.group, error) from error
        self._all_reduces = []
        self.sieve.step.clock.nonfinite_anywhere |= not all(map(is_finite, averages))

    def end_step(self) -> StepRecord:
        """Wait for the exchanges of a step and close it, after its last bucket.

        DDP would wait next. An error reaches the training loop unchanged only if it is raised
        here, before that.
        """
        sieve, clock, topology = self.sieve, self.sieve.step.clock, self.topology
        window = time.perf_counter() - clock.start
        is_plain, scale = sieve.is_before_start, sieve.thresholds.scale_in(sieve.step.number)
        name, reason = "plain" if is_plain else topology.running.name, topology.reason
        self.finish()
        clock.meet_seconds = self.reports.notes.seconds
        nonfinite = self._skip_step(is_plain) if clock.nonfinite_anywhere else {}
        sieve.commit(skipped=clock.nonfinite_anywhere)
        record, report = close_step(
            clock,
            step=sieve.step.number,
            exchange=name,
            reason=reason,
            seconds=self.reports.end_step() if not is_plain else math.inf,
            window=window,
            scale=scale,
            residual_norm=sieve.residual_norm(),
            loss_scale=sieve.step.loss_scale,
            nonfinite_parameters=nonfinite,
        )
        if not is_plain:
            topology.end_step(report, self.reports)
        return record

    def announce(self, record: StepRecord) -> None:
        """Tell the observers of a step that has ended, then let the bases turn."""
        try:
            for observer in list(self.observers):
                observer.end_step(record)
        finally:
            # Also after an observer's error: bases must turn on all ranks in the same step.
            if self.sieve.is_turn_due:
                self._submit_turn()
        if self.groups.group.rank() == 0:
            self._hints.end_step(record)

    def _skip_step(self, is_plain: bool) -> dict[int, list[str]]:
        """Undo this step, because a gradient is not finite.

        Returns:
            The parameters with such gradients, by rank, as in `StepRecord.nonfinite_parameters`.
        """
        if not is_plain:
            self.reports.tell_nothing()
        self.sieve.skip()
        return sources(self.groups.everyone, self.sieve.step.clock.nonfinite_names)

    def _submit_turn(self) -> None:
        """Turn the bases in the worker while the optimizer and the next forward pass run."""
        asked = Handover(next(p.device for p in self.sieve.parameters if p.rotation is not None))

        def turn() -> None:
            with asked.taken_over():
                self.sieve.turn(self.world_size, self.groups.add_up_on_node)

        self.worker.submit_local(turn)
