"""Turn the gradients of a bucket into the frames of this rank: rotate, select, encode."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.bucket.plan import Piece, Plan
from gradsieve.bucket.step import Step
from gradsieve.codec import (
    Grid,
    Section,
    empty_section,
    encode_frame,
    pruned_section,
)
from gradsieve.parameters.nonfinite import is_finite, note_nonfinite
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import WholeGroup, round_whole
from gradsieve.rotation import Rotation
from gradsieve.runtime.devices import on_host
from gradsieve.sieve import select

Sections = dict[Piece, Section]


def sieve_gradients(step: Step, plan: Plan, buffer: Tensor) -> Sections:
    """Return a section for each piece that this rank sends of the gradients in `buffer`."""
    sections: Sections = {}
    for number, unit in enumerate(plan.units):
        flat, pieces = plan.layout.take(buffer, number), plan.pieces[number]
        if not pieces:
            # Another rank of the node keeps the residual of this unit.
            if isinstance(unit, ParameterState):
                unit.moments, unit.squared_remainder = None, 0.0
            continue
        if isinstance(unit, WholeGroup):
            made = send_whole(step, plan, unit, flat, pieces)
        else:
            clear = not plan.of_node and unit.clears(flat.dtype)
            flat = step.unscaled(flat)
            made = send_survivors(step, unit, flat, pieces, clear=clear, is_mean=plan.of_node)
        step.clock.elements += sum(piece.numel for piece in pieces)
        step.clock.sent_elements += sum(section.count for section in made)
        sections.update(zip(pieces, made, strict=True))
    return sections


def encode_frames(step: Step, plan: Plan, sections: Sections) -> list[Tensor]:
    """Return a frame for each of the plan's own parts."""
    clock = step.clock
    with clock.timed("encode"):
        plan.digest = step.plans.digest(plan)
        nonfinite = clock.nonfinite > 0 or clock.carries_nonfinite
        frames = [
            encode_frame(
                [sections[piece] for piece in part],
                layout=plan.digest,
                step=step.number,
                nonfinite=nonfinite,
            )
            for part in plan.own_parts
        ]
        clock.frame_bytes += sum(frame.numel() for frame in frames)
    return frames


def give_whole(step: Step, plan: Plan, buffer: Tensor) -> None:
    """Add the remainders of whole parameters to their gradients.

    It must be called before the ranks of a node average the bucket.
    """
    for number, unit in enumerate(plan.units):
        if isinstance(unit, WholeGroup) and step.config.error_feedback:
            flat = plan.layout.take(buffer, number)
            scale, may_be_unused = step.loss_scale, step.may_be_unused
            given = unit.give(flat, scale=scale, may_be_unused=may_be_unused)
            plan.layout.put(buffer, number, given)


def send_whole(
    step: Step, plan: Plan, group: WholeGroup, flat: Tensor, pieces: Sequence[Piece]
) -> list[Section]:
    with step.clock.timed("encode"):
        gradients, share = step.unscaled(flat).float(), 1
        if plan.of_node:
            # The ranks of a node have already given their remainders. Each keeps a part of the new
            # one, in units of its own gradient.
            share = len(plan.parts)
        elif step.config.error_feedback:
            gradients = group.give(gradients, may_be_unused=step.may_be_unused)
        values = gradients.cpu()
        made = []
        for piece in pieces:
            section, rest = round_whole(
                values[piece.start : piece.stop],
                step.config.values,
                error_feedback=step.config.error_feedback,
            )
            if step.config.error_feedback and rest is not None:
                group.add_rounding_error(piece.start, share * rest)
            made.append(section)
        note_whole(step, plan, group, values)
        return made


def note_whole(step: Step, plan: Plan, group: WholeGroup, values: Tensor) -> None:
    """Note whether gradients are finite.

    A node's ranks have noted their own gradients before they averaged them.
    """
    if not plan.of_node:
        note_nonfinite(step.clock, group.named, values)
    elif not is_finite(values):
        step.clock.carries_nonfinite = True


def send_survivors(
    step: Step,
    parameter: ParameterState,
    flat: Tensor,
    pieces: Sequence[Piece],
    *,
    clear: bool,
    is_mean: bool,
) -> list[Section]:
    """Select the survivors of one parameter and encode them, one section for each piece.

    Args:
        flat: the gradient of the parameter, without the scale of the loss.
        clear: whether to leave zeros in the place of the gradient.
        is_mean: whether the gradient is the mean of a node. The ranks of the node have then noted
            which of their own gradients are not finite.
    """
    clock = step.clock
    if step.holds(flat):
        return [empty_section(piece.numel) for piece in pieces]
    flat, hidden = flat.float(), 0
    start, stop = pieces[0].start, pieces[-1].stop
    with clock.timed("rotate"):
        if parameter.rotation is not None:
            flat, hidden = rotate(parameter.rotation, flat)
    flat = flat[start:stop]
    before, left = (residual[start:stop] for residual in parameter.open())
    parameter.is_empty = False
    with clock.timed("select"):
        threshold = step.thresholds.next(parameter, flat, before, step.number)
        into = None if left.data_ptr() == before.data_ptr() else left
        indices, values, moments = select(
            flat, before, threshold, out=step.workspace, clear=clear, into=into
        )
        step.changes.send(parameter, start, indices, values)
        step.thresholds.observe(parameter, moments)
        if not step.config.error_feedback:
            left.zero_()
    with clock.timed("encode"):
        grid = grid_of(parameter.rotation)
        sections = [
            pruned_section(
                mine.numpy(),
                values_of_piece.numpy(),
                piece.numel,
                threshold,
                step.config.values,
                row=parameter.row,
                finite=moments.nonfinite == 0,
                residual=kept_for(step, left[piece.start - start : piece.stop - start]),
                grid=None if grid is None else grid.of_piece(piece.start, piece.stop),
            )
            for piece, mine, values_of_piece in divided(pieces, *on_host(indices, values))
        ]
        parameter.squared_remainder = sum(section.squared_remainder for section in sections)
        if step.config.error_feedback and not left.is_cpu:
            parameter.squared_remainder = leave_remainder(left, indices, values, sections)
    clock.thresholds[parameter.name] = threshold
    clock.moments[parameter.name] = moments
    if moments.nonfinite and is_mean:
        clock.carries_nonfinite = True
    elif moments.nonfinite:
        clock.nonfinite += moments.nonfinite + hidden
        clock.nonfinite_names.append(parameter.name)
    return sections


def divided(
    pieces: Sequence[Piece], indices: Tensor, values: Tensor
) -> Iterator[tuple[Piece, Tensor, Tensor]]:
    """Yield each piece with its survivors, whose indices count from the start of the piece.

    Args:
        pieces: pieces that follow one another.
        indices: int32 [survivors], ascending, counted from the start of the first piece.
        values: float32 [survivors].
    """
    if len(pieces) == 1:
        yield pieces[0], indices, values
        return
    starts = [piece.start - pieces[0].start for piece in pieces]
    places = torch.tensor(starts, dtype=torch.int32, device="cpu")
    cuts = torch.searchsorted(indices, places).tolist()
    for piece, start, first, last in zip(
        pieces, starts, cuts, [*cuts[1:], len(indices)], strict=True
    ):
        yield piece, indices[first:last] - start, values[first:last]


def rotate(rotation: Rotation, flat: Tensor) -> tuple[Tensor, int]:
    """Return the coefficients of a gradient.

    Exactly one coefficient is NaN if the gradient is not finite. A plain product would make all
    coefficients of a block NaN, and the record would count them all.

    Returns:
        The coefficients, and the number of non-finite elements of the gradient beyond the first.
    """
    if math.isfinite(float(flat.sum())):
        return rotation.coefficients(flat), 0
    finite = flat.isfinite()
    coefficients = rotation.coefficients(torch.where(finite, flat, 0.0))
    bad = flat.numel() - int(finite.sum())
    if bad:
        coefficients[0] = math.nan
    return coefficients, max(0, bad - 1)


def grid_of(rotation: Rotation | None) -> Grid | None:
    """Return how large coefficients are expected to be, or None where nothing is known of them."""
    squares = None if rotation is None else rotation.mean_squares()
    return None if squares is None else Grid.of_squares(*(side.numpy() for side in squares))


def kept_for(step: Step, left: Tensor) -> NDArray[np.float32] | None:
    """Return the part of the residual that the encoder may write to.

    It is None without error feedback, and on a device, which the encoder cannot reach.
    """
    return left.numpy() if step.config.error_feedback and left.is_cpu else None


def leave_remainder(
    left: Tensor, indices: Tensor, values: Tensor, sections: Sequence[Section]
) -> float:
    """Leave the rounding errors of the survivors in a residual on a device.

    Returns:
        The sum of the squares of these errors.
    """
    if all(section.is_exact for section in sections):
        return 0.0
    sent = np.concatenate([section.survivors()[1] for section in sections])
    remainder = values - torch.from_numpy(sent).to(left.device)
    left.index_copy_(0, indices.long(), remainder)
    return float(remainder.square().sum())
