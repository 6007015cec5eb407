"""The sieve of one rank, without torch.distributed.

The engine runs one of them in each process. Benches and tests run many in one process.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradsieve.bucket.average import Contribution, average_into
from gradsieve.bucket.encode import Sections, encode_frames, sieve_gradients
from gradsieve.bucket.plan import Plan
from gradsieve.bucket.plan_cache import Divides, PlanCache
from gradsieve.bucket.step import Step
from gradsieve.bucket.warm_up import warm_up
from gradsieve.config import SieveConfig
from gradsieve.control.loss_scale import LossScale, Scaler
from gradsieve.parameters.changes import Changes
from gradsieve.parameters.nonfinite import is_finite
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.pieces import AddUp
from gradsieve.parameters.registry import Registry
from gradsieve.parameters.thresholding import Thresholding
from gradsieve.parameters.whole import WholeGroup
from gradsieve.saved.sieve import lines_of, require_min_numel, require_scale, require_settings
from gradsieve.sieve import Workspace
from gradsieve.telemetry.clock import StepClock


class RankSieve:
    """Selects from the gradients of one rank, and keeps what is not sent.

    `gradsieve.bucket` shows a step of two ranks in one process.

    Args:
        config: the options.
        scaler: the object that scales the loss; see `SieveState`.
    """

    def __init__(self, config: SieveConfig, scaler: Scaler | None = None) -> None:
        warm_up(config.values, config.error_feedback, config.rotation > 0)
        self.config = config
        self.parameters = Registry(config.min_numel, config.rotation)
        self.thresholds = Thresholding(config.policy, config.start_step, config.ramp_steps)
        self.loss_scale = LossScale(scaler)
        self.step_number = 0
        """The number of the running step; between steps, that of the next."""
        self.may_be_unused = True
        """Whether there may be parameters that no rank used. DDP drops their average."""
        self._stands_for_weights = False
        self._shards = ""
        self._plans = PlanCache(config.values)
        self._changes = Changes()
        self._workspace = Workspace()
        self.step = self._new_step()

    # Names.

    def bind(self, model: nn.Module, ignored: Collection[str] = ()) -> None:
        """Take the names of the parameters from `model`. Raises what `Registry.bind` raises."""
        self.parameters.bind(model, ignored)

    def bind_tensors(self, named: Sequence[tuple[str, Tensor]], shards: str) -> None:
        """Take parameters without a model.

        Args:
            shards: which shards of parameters they are; see `places_of`.
        """
        self.parameters.bind_named(object(), named)
        self._shards = shards

    def bind_weights(self, model: nn.Module, named: Sequence[tuple[str, Tensor]]) -> None:
        """Take weights that stand for the parameters of `model`, all of which are used.

        Weights have no loss scale. A step is never undone, because training ends where weights
        are not finite.
        """
        self._stands_for_weights = True
        self.parameters.can_undo = self.may_be_unused = self.thresholds.begins_low = False
        self.parameters.tells_own = self.config.error_feedback
        self.loss_scale = LossScale(None)
        self.loss_scale.watch = None
        self.parameters.bind_named(model, named)

    @property
    def stands_for_weights(self) -> bool:
        """Whether weights are exchanged. Their owner then saves this state with them."""
        return self._stands_for_weights

    @property
    def is_before_start(self) -> bool:
        """Whether this step prunes nothing: it is before `start_step`, or names are unknown."""
        return self.step.number < self.config.start_step or self.parameters.nameless

    # A step.

    def begin_step(self) -> None:
        """Begin a step. An unfinished step before it is undone.

        Raises:
            SieveError: the scaler's scale is not positive and finite.
        """
        self.clear_interrupted()
        self._workspace.clear()
        self.loss_scale.read()
        self.step = self._new_step()

    def restart_clock(self, computing_threads: int) -> None:
        """Time the running step from now on; what its ranks had to settle first does not count."""
        self.step.clock = StepClock(computing_threads)

    def _new_step(self) -> Step:
        return Step(
            number=self.step_number,
            config=self.config,
            thresholds=self.thresholds,
            plans=self._plans,
            changes=self._changes,
            workspace=self._workspace,
            clock=StepClock(),
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
        """Return who carries what of a bucket. The arguments are those of `PlanCache.plan`."""
        return self._plans.plan(topology, parameters, place, places)

    def forget_plans(self) -> None:
        self._plans.forget()

    def place_residuals(self, plan: Plan, world_size: int, add_up: AddUp) -> None:
        """Move residuals to where the plan needs them, before anything else in an exchange.

        Args:
            add_up: a function that replaces a tensor by its sum over the ranks of the node. It is
                called only if `plan.of_node`.
        """
        self._changes.touch(plan.units)
        plan.place_residuals(world_size, add_up)

    def select(self, plan: Plan, buffer: Tensor) -> Sections:
        """Take the survivors out of the gradients of a bucket and their residuals.

        Args:
            buffer: the flat gradients, laid out as in `plan.layout`. They are overwritten.

        Returns:
            A section for each piece that this rank sends.
        """
        return sieve_gradients(self.step, plan, buffer)

    def encode(self, plan: Plan, sections: Sections) -> list[Tensor]:
        """Return a frame (uint8 [bytes], on the CPU) for each of the plan's own parts."""
        return encode_frames(self.step, plan, sections)

    def average(
        self, plan: Plan, contributions: Sequence[Contribution], buffer: Tensor, world_size: int
    ) -> Tensor:
        """Replace the gradients of a bucket by the average of what all ranks have sent.

        It runs on as many threads as torch uses.

        Args:
            contributions: the frames of all ranks.
            buffer: the flat buffer of the bucket. Its own content is ignored.

        Raises:
            FrameError: a payload is damaged. The content of the buffer is then undefined.
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
        # The average times the loss scale may overflow the dtype of the buffer. It then does so on
        # all ranks.
        is_safe = buffer.dtype is torch.float32 and scale <= 1
        overflowed = not (is_safe or is_finite(buffer))
        clock.nonfinite_anywhere |= overflowed or any(c.frame.nonfinite for c in contributions)
        return buffer

    def give_residuals(
        self, parameters: Sequence[ParameterState], buffer: Tensor, world_size: int
    ) -> None:
        """Add the whole residuals to the gradients of a bucket, for a dense exchange."""
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

    @property
    def touched(self) -> set[str]:
        """The names of the parameters from which the running step has selected."""
        return self._changes.touched

    def clear_interrupted(self) -> None:
        """Undo an interrupted step: its survivors, gradient sizes and unknown names."""
        self.put_back()
        self.thresholds.sizes.drop_step()
        self.parameters.end_step()

    def put_back(self) -> None:
        """Return the survivors of this step to the residuals, because the exchange failed."""
        self._changes.put_back(error_feedback=self.config.error_feedback)

    def skip(self) -> None:
        """Undo this step, because a gradient is not finite.

        A loss scaler then skips the optimizer step on every rank. Weights have no second residual
        to go back to; their survivors are put back instead.
        """
        if self._stands_for_weights:
            self.put_back()
        else:
            self._changes.undo()
        self.thresholds.sizes.drop_step()

    def commit(self, *, skipped: bool = False) -> None:
        """End the step and keep its changes."""
        clock = self.step.clock
        self._changes.commit()
        self.parameters.end_step()
        self.thresholds.sizes.end_step()
        if self.loss_scale.watch is not None and not clock.plain:
            self.loss_scale.watch.see(clock.moments, skipped=skipped)
        self.step_number += 1

    @property
    def is_turn_due(self) -> bool:
        """Whether it is time for the bases to follow the gradients."""
        return any(p.rotation is not None and p.rotation.is_due for p in self.parameters)

    def turn(self, world_size: int, add_up: AddUp) -> None:
        """Turn the bases towards the gradients, between steps. For `add_up` see `open`."""
        for parameter in self.parameters:
            parameter.turn(world_size, add_up)

    def decay(self, plan: Plan, factor: float) -> None:
        """Multiply the residuals of a bucket by `factor`, between steps."""
        if factor != 1:
            for unit in plan.units:
                unit.decay(factor)

    def residual_norm(self) -> float:
        """Return the Euclidean norm of all residuals after a step."""
        if not self.config.error_feedback:
            return 0.0
        pruned = [p for p in self.parameters if not (p.whole or p.is_empty)]
        if self.step.clock.nonfinite_anywhere:
            # The moments belong to a step that was undone.
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
        """Lines that must be the same on all ranks, and in a saved state that is loaded."""
        scaler = f"scaler={'given' if self.loss_scale.is_told else 'none'}"
        shards = (f"shards={self._shards}",) if self._shards else ()
        return (*self.config.lines, scaler, *shards)

    def save(self) -> dict[str, Any]:
        """Return what the sieve keeps between steps. The caller adds rank and world size."""
        return {
            "settings": lines_of(self.settings),
            "step": self.step_number,
            "min_numel": self.parameters.min_numel,
            "weights": (self.parameters.weights(),),
            "mean_square": self.thresholds.sizes.mean_square,
            "scale": self.thresholds.scale,
            "parameters": self.parameters.save(),
        }

    def require_fit(
        self, saved: Mapping[str, Any], weights: Mapping[str, int] | None = None
    ) -> None:
        """Raise ValueError if a sound saved state does not fit this sieve.

        Args:
            weights: the checksums that the parameters will have; None takes those that they have.
        """
        require_settings(saved["settings"], lines_of(self.settings))
        budget = self.thresholds.budget
        require_scale(saved["scale"], None if budget is None else budget.largest_scale)
        require_min_numel(saved["min_numel"], self.parameters.min_numel)
        self.parameters.require_fit(saved["parameters"], saved["weights"][0], weights)
        if saved["step"] and not saved["parameters"]:
            raise ValueError(f"the saved state is of step {saved['step']} and has no parameters")

    def load(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that has passed `require_fit`, between steps."""
        if self.parameters.min_numel is None:
            self.parameters.min_numel = saved["min_numel"]
        self.parameters.load(saved["parameters"], saved["weights"][0])
        self.thresholds.sizes.mean_square = saved["mean_square"]
        if self.thresholds.budget is not None:
            self.thresholds.budget.scale = float(saved["scale"])
        self.step_number = saved["step"]
