"""The sieve of one rank, without torch.distributed."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradsieve.bucket.average import Contribution, average_into
from gradsieve.bucket.encode import Sections, encode_frames, sieve_gradients
from gradsieve.bucket.plan import Plan
from gradsieve.bucket.plans import Divides, Plans
from gradsieve.bucket.step import Step
from gradsieve.bucket.warm_up import warm_up
from gradsieve.config import SieveConfig
from gradsieve.control.loss_scale import LossScale, Scaler
from gradsieve.parameters.changes import Changes
from gradsieve.parameters.nonfinite import is_finite
from gradsieve.parameters.parameter import AddUp, ParameterState
from gradsieve.parameters.registry import Registry
from gradsieve.parameters.thresholding import Thresholding
from gradsieve.parameters.whole import WholeGroup
from gradsieve.saved.sieve import lines_of, require_min_numel, require_scale, require_settings
from gradsieve.sieve import Workspace
from gradsieve.telemetry.clock import StepClock


class RankSieve:
    """Selects from one rank's gradients, and keeps what is not sent.

    The engine runs one between processes. A bench plays many in one process, as in this step of
    some ranks with one bucket::

        for sieve, bucket in zip(sieves, buckets):
            sieve.begin_step()
            plan = sieve.plan(GATHER, list(sieve.parameters), 0, 1)
            frames += sieve.encode(plan, sieve.select(plan, bucket))
        for sieve, bucket in zip(sieves, buckets):
            sieve.average(plan, contributions, bucket)   # of all frames
            sieve.commit()

    Args:
        config: the options.
        scaler: what scales the loss.
    """

    def __init__(self, config: SieveConfig, scaler: Scaler | None = None) -> None:
        warm_up(config.values, config.error_feedback, config.rotation > 0)
        self.config = config
        self.parameters = Registry(config.min_numel, config.rotation)
        self.thresholds = Thresholding(config.policy, config.start_step, config.ramp_steps)
        self.loss_scale = LossScale(scaler)
        self.number = 0
        """The number of the running step, or of the next."""
        self.may_be_unused = True
        """A parameter may be one that no rank used; DDP drops the result of those."""
        self._stands_for_weights = False
        self._plans = Plans(config.values)
        self._changes = Changes()
        self._workspace = Workspace()
        self.step = self._new_step(1)

    # Names.

    def bind(self, model: nn.Module, ignored: Collection[str] = ()) -> None:
        """Name the parameters as `model` does; raises as `Registry.bind`."""
        self.parameters.bind(model, ignored)

    def bind_weights(self, model: nn.Module, named: Sequence[tuple[str, Tensor]]) -> None:
        """Take parameters that stand for those of `model`, all of which are used.

        Weights carry no scale of the loss. Where they are not finite training ends, so that no
        step is taken back.
        """
        self._stands_for_weights = True
        self.parameters.can_undo, self.may_be_unused = False, False
        self.loss_scale = LossScale(None)
        self.loss_scale.watch = None
        self.parameters.bind_named(model, named)

    @property
    def stands_for_weights(self) -> bool:
        """What is exchanged are weights, whose owner saves this state with them."""
        return self._stands_for_weights

    @property
    def plain(self) -> bool:
        """Nothing is pruned in this step: it is before `start_step`, or names are unknown."""
        return self.number < self.config.start_step or self.parameters.nameless

    # A step.

    def begin_step(self, computing_threads: int = 1) -> None:
        """Begin a step; what one before it has left unfinished is put back.

        Args:
            computing_threads: as for `StepClock`.

        Raises:
            SieveError: the scaler's scale is not positive and finite.
        """
        self.settle()
        self._workspace.clear()
        self.loss_scale.read()
        self.step = self._new_step(computing_threads)

    def _new_step(self, computing_threads: int) -> Step:
        return Step(
            number=self.number,
            config=self.config,
            thresholds=self.thresholds,
            plans=self._plans,
            changes=self._changes,
            workspace=self._workspace,
            clock=StepClock(computing_threads),
            loss_scale=self.loss_scale.now,
            may_be_unused=self.may_be_unused,
        )

    def plan(
        self,
        topology: Divides,
        parameters: Sequence[ParameterState],
        place: int,
        places: int,
    ) -> Plan:
        """Who carries what of a bucket with these parameters; arguments as `Plans.plan`."""
        return self._plans.plan(topology, parameters, place, places)

    def forget_plans(self) -> None:
        self._plans.forget()

    def open(self, plan: Plan, world_size: int, add_up: AddUp) -> None:
        """Let residuals be where the plan wants them, before anything else is done with a bucket.

        Args:
            add_up: replaces a tensor by the sum over the node's ranks, where `plan.of_node`.
        """
        self._changes.touch(plan.units)
        plan.settle(world_size, add_up)

    def select(self, plan: Plan, buffer: Tensor) -> Sections:
        """Take what passes the threshold out of a bucket's gradients and their residuals.

        Args:
            buffer: the gradients, flat, as `plan.layout` says; overwritten.

        Returns:
            A section for each of the pieces that this rank sends.
        """
        return sieve_gradients(self.step, plan, buffer)

    def encode(self, plan: Plan, sections: Sections) -> list[Tensor]:
        """Frames (uint8, on the CPU), one for each of the plan's own parts."""
        return encode_frames(self.step, plan, sections)

    def average(
        self, plan: Plan, contributions: Sequence[Contribution], buffer: Tensor, world_size: int
    ) -> Tensor:
        """Replace the bucket's gradients by what all ranks have sent, on all of torch's threads.

        Raises:
            FrameError: a payload makes no sense; the buffer holds nothing of use.
        """
        clock, scale = self.step.clock, self.step.loss_scale
        with clock.timed("decode"):
            average_into(
                buffer,
                contributions,
                [unit.rotation for unit in plan.units],
                torch.get_num_threads(),
                plan.cleared(buffer.dtype),
                plan.layout.places,
                scale,
            )
        if self.thresholds.budget is not None:
            clock.overhead += self._plans.overhead(plan, world_size)
        # The average, times the loss scale, may leave the range of the buffer, on all ranks alike.
        is_safe = buffer.dtype is torch.float32 and scale <= 1
        overflowed = not (is_safe or is_finite(buffer))
        clock.nonfinite_anywhere |= overflowed or any(c.frame.nonfinite for c in contributions)
        return buffer

    def give_residuals(
        self, parameters: Sequence[ParameterState], buffer: Tensor, world_size: int
    ) -> None:
        """Add to the gradients of a bucket all that was kept of those before."""
        layout, step = self._plans.layout(parameters), self.step
        self._changes.touch(layout.units)
        for number, unit in enumerate(layout.units):
            flat = layout.take(buffer, number)
            if isinstance(unit, WholeGroup):
                if self.config.error_feedback:
                    given = unit.give(
                        flat,
                        scale=step.loss_scale,
                        may_be_unused=step.may_be_unused,
                        keeps_gradient=False,
                    )
                    layout.put(buffer, number, given)
            elif not unit.is_empty and not step.holds(flat):
                unit.give_residuals(flat, world_size, step.loss_scale)

    def settle(self) -> None:
        """Put back what a step that was cut short has left: survivors, sizes, names."""
        self.put_back()
        self.thresholds.sizes.drop_step()
        self.parameters.end_step()

    def put_back(self) -> None:
        """The exchange failed: what this step has sent so far returns to the residuals."""
        self._changes.put_back(error_feedback=self.config.error_feedback)

    def skip(self) -> None:
        """A gradient was not finite: leave nothing of this step behind.

        Whoever scales the loss skips the step on every rank. Weights have nothing to go back to,
        and keep what was sent.
        """
        if self._stands_for_weights:
            self.put_back()
        else:
            self._changes.drop()
        self.thresholds.sizes.drop_step()

    def commit(self, *, skipped: bool = False) -> None:
        """The step is done."""
        clock = self.step.clock
        self._changes.keep()
        self.parameters.end_step()
        self.thresholds.sizes.end_step()
        if self.loss_scale.watch is not None and not clock.plain:
            self.loss_scale.watch.see(clock.moments, skipped=skipped)
        self.number += 1

    @property
    def is_turn_due(self) -> bool:
        """Bases are to follow the gradients now."""
        return any(p.rotation is not None and p.rotation.is_due for p in self.parameters)

    def turn(self, world_size: int, add_up: AddUp) -> None:
        """Let the bases follow the gradients; between steps."""
        for parameter in self.parameters:
            parameter.turn(world_size, add_up)

    def share_bases(self, other: "RankSieve") -> None:
        """Use the bases of another rank in this process: they are alike on all ranks, and large.

        `turn_shared` turns them then.
        """
        for mine, theirs in zip(self.parameters, other.parameters, strict=True):
            mine.rotation = theirs.rotation

    def decay(self, plan: Plan, factor: float) -> None:
        """Multiply what is kept of a bucket's parameters, between steps."""
        if factor != 1:
            for unit in plan.units:
                unit.decay(factor)

    def residual_norm(self) -> float:
        """Euclidean norm of all residuals, after a step."""
        if not self.config.error_feedback:
            return 0.0
        pruned = [p for p in self.parameters if not (p.whole or p.is_empty)]
        if self.step.clock.nonfinite_anywhere:
            # The moments are those of a step that was taken back.
            norms = [float(torch.linalg.vector_norm(p.flat_residual())) for p in pruned]
        else:
            squares = [
                p.moments.unsent_square_sum + p.squared_remainder for p in pruned if p.moments
            ]
            norms = [math.sqrt(sum(squares))]
        remainders = [group.remainder for group in self._plans.groups]
        return math.hypot(*norms, *(float(torch.linalg.vector_norm(r)) for r in remainders))

    # Checkpoints.

    @property
    def settings(self) -> tuple[str, ...]:
        """Lines of what must be alike on all ranks, and when a saved state is loaded."""
        return (*self.config.lines, f"scaler={'given' if self.loss_scale.is_told else 'none'}")

    def save(self) -> dict[str, Any]:
        """What is kept, between steps; whose it is must be added."""
        return {
            "settings": lines_of(self.settings),
            "step": self.number,
            "min_numel": self.parameters.min_numel,
            "weights": self.parameters.weights(),
            "mean_square": self.thresholds.sizes.mean_square,
            "scale": self.thresholds.scale,
            "parameters": self.parameters.save(),
        }

    def require_fit(
        self, saved: Mapping[str, Any], weights: Mapping[str, int] | None = None
    ) -> None:
        """Raise ValueError where `load` cannot take a state that is sound by itself.

        Args:
            weights: checksums of the parameters as they will be; None: those that they have.
        """
        require_settings(saved["settings"], lines_of(self.settings))
        budget = self.thresholds.budget
        require_scale(saved["scale"], None if budget is None else budget.largest_scale)
        require_min_numel(saved["min_numel"], self.parameters.min_numel)
        self.parameters.require_fit(saved["parameters"], saved["weights"], weights)
        if saved["step"] and not saved["parameters"]:
            raise ValueError(f"the saved state is of step {saved['step']} and has no parameters")

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over what `require_fit` lets pass, between steps."""
        if self.parameters.min_numel is None:
            self.parameters.min_numel = saved["min_numel"]
        self.parameters.load(saved["parameters"], saved["weights"])
        self.thresholds.sizes.mean_square = saved["mean_square"]
        if self.thresholds.budget is not None:
            self.thresholds.budget.scale = float(saved["scale"])
        self.number = saved["step"]


def turn_shared(sieves: Sequence[RankSieve]) -> None:
    """Let bases that ranks in one process share follow the gradients, where it is time."""
    for of_ranks in zip(*(sieve.parameters for sieve in sieves), strict=True):
        rotation = of_ranks[0].rotation
        if rotation is not None and rotation.is_due:
            for parameter in of_ranks:
                parameter.take_over(len(sieves))
            rotation.turn([parameter.flat_residual() for parameter in of_ranks])
