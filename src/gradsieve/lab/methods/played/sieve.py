"""The ranks' sieves in one process, through the hook's own select, encode and decode."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradsieve.averaging import Contribution, average_into
from gradsieve.budget import Budget
from gradsieve.codec import Frame, decode_frame, encode_frame
from gradsieve.lab.methods.dense import Rounded
from gradsieve.layout import BucketLayout
from gradsieve.pieces import Plan, plan_for
from gradsieve.second_shot import add_and_prune
from gradsieve.selection import encode_frames, sieve_gradients
from gradsieve.state import SieveState
from gradsieve.tally import Tally
from gradsieve.whole import WholeGroup


class Sieve:
    """`SieveState` on each rank.

    Args:
        arguments: of the state.
        residual_decay: each residual is multiplied by it whenever its parameter has been exchanged.

    Raises:
        ValueError: a number is out of range, or they ask for a link.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        ranks: int,
        arguments: Mapping[str, Any],
        residual_decay: float = 1.0,
    ) -> None:
        follows_link = isinstance(arguments.get("threshold", Budget("auto")), Budget)
        if follows_link or arguments.get("exchange", "gather") not in ("gather", "two-shot"):
            raise ValueError(
                "a budget (the default), or another exchange, needs a link, and here is none: "
                'name a policy, as in "sieve:balanced-sigma=1" or "local:every=10,balanced-sigma=1"'
            )
        self.states = [SieveState(**arguments) for _ in range(ranks)]
        for state in self.states:
            state.bind(nn.ParameterList(parameters))
        self.kept = [list(state.registry) for state in self.states]
        # What all ranks hold alike is kept and followed once.
        for of_ranks in zip(*self.kept, strict=True):
            for parameter in of_ranks:
                parameter.rotation = of_ranks[0].rotation
        self.residual_decay = residual_decay
        self.plans: dict[tuple[int, ...], list[Plan]] = {}
        """Of each rank, for the parameters that are exchanged together."""

    def plans_of(self, places: Sequence[int]) -> list[Plan]:
        key = tuple(places)
        if key not in self.plans:
            way = self.states[0].route.frame_way
            owners = 1 if way == "gather" else len(self.states)
            self.plans[key] = [
                plan_for(way, layout, rank, len(self.states))
                for rank, kept in enumerate(self.kept)
                for layout in [BucketLayout([kept[place] for place in places], owners)]
            ]
        return self.plans[key]

    def average(
        self, gradients: Sequence[Sequence[Tensor]], places: Sequence[int] | None = None
    ) -> tuple[list[Tensor], float]:
        if self.states[0].plain:
            for state in self.states:
                state.step += 1
            return Rounded(32).average(gradients)
        plans = self.plans_of(range(len(self.kept[0])) if places is None else places)
        ranks, plan = len(self.states), plans[0]
        made = []
        for state, own_plan, own in zip(self.states, plans, gradients, strict=True):
            state.workspace.clear()
            state.tally = Tally()
            bucket = torch.cat([gradient.view(-1) for gradient in own])
            made.append(encode_frames(state, own_plan, sieve_gradients(state, own_plan, bucket)))
            state.steering.sizes.end_step()
            state.step += 1
        sent = sum(frame.numel() for own in made for frame in own)
        arrived = [[decode_frame(frame) for frame in part] for part in zip(*made, strict=True)]
        if plan.way == "gather":
            added = [Contribution(frame, plan.parts[0], 1.0 / ranks) for frame in arrived[0]]
        else:
            sums = [self.sum_of(plans[rank], rank, frames) for rank, frames in enumerate(arrived)]
            sent += sum(frame.numel() for frame in sums)
            added = [
                Contribution(decode_frame(frame), part, 1.0)
                for frame, part in zip(sums, plan.parts, strict=True)
            ]
        numels = [gradient.numel() for gradient in gradients[0]]
        buffer = torch.empty(sum(numels), dtype=torch.float32, device="cpu")
        rotations = [unit.rotation for unit in plan.units]
        average_into(buffer, added, rotations, places=plan.layout.places)
        for state, own_plan in zip(self.states, plans, strict=True):
            state.changes.touch(own_plan.units)
            state.changes.keep()
        self.decay(plans)
        self.turn()
        averages = [
            part.view_as(gradient)
            for part, gradient in zip(torch.split(buffer, numels), gradients[0], strict=True)
        ]
        return averages, 8 * sent / ranks

    def sum_of(self, plan: Plan, rank: int, frames: Sequence[Frame]) -> Tensor:
        """The frame that the owner of a part makes of all ranks' frames."""
        state = self.states[rank]
        sections = add_and_prune(
            plan, rank, frames, state.values, error_feedback=state.error_feedback
        )
        return encode_frame(sections)

    def decay(self, plans: Sequence[Plan]) -> None:
        if self.residual_decay == 1:
            return
        for plan in plans:
            for unit in plan.units:
                if isinstance(unit, WholeGroup):
                    unit.remainder.mul_(self.residual_decay)
                    continue
                unit.flat_residual().mul_(self.residual_decay)
                if unit.owned is not None:
                    unit.owned.residual.mul_(self.residual_decay)

    def turn(self) -> None:
        for of_ranks in zip(*self.kept, strict=True):
            rotation = of_ranks[0].rotation
            if rotation is not None and rotation.is_due:
                for parameter in of_ranks:
                    parameter.take_over(len(of_ranks))
                rotation.turn([parameter.flat_residual() for parameter in of_ranks])
