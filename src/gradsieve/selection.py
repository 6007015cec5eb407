"""From a bucket's gradients to this rank's frames: rotate, select, encode."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.codec import (
    Kind,
    Section,
    empty_section,
    encode_frame,
    pruned_section,
    whole_section,
)
from gradsieve.devices import on_host
from gradsieve.parameters import ParameterState
from gradsieve.pieces import Piece, Plan
from gradsieve.rotation import Rotation
from gradsieve.sieve import select
from gradsieve.state import SieveState

Sections = dict[Piece, Section]


def sieve_gradients(state: SieveState, plan: Plan, gradients: Sequence[Tensor]) -> Sections:
    """A section for each piece of the bucket."""
    sections: Sections = {}
    for number, (parameter, gradient) in enumerate(zip(plan.parameters, gradients, strict=True)):
        # As it lies in the bucket, whatever the parameter's memory format.
        flat, pieces = gradient.view(-1), plan.pieces[number]
        if not pieces:
            # Another rank of the node keeps this parameter's residual.
            parameter.moments, parameter.squared_remainder = None, 0.0
            continue
        if parameter.whole:
            made = send_whole(state, parameter, flat, pieces)
        else:
            clear = plan.takes_all and parameter.clears(flat.dtype)
            made = send_survivors(state, parameter, flat, pieces, clear=clear)
        state.tally.elements += sum(piece.numel for piece in pieces)
        state.tally.sent_elements += sum(section.count for section in made)
        sections.update(zip(pieces, made, strict=True))
    return sections


def encode_frames(state: SieveState, plan: Plan, sections: Sections) -> list[Tensor]:
    """Of the plan's own parts."""
    tally = state.tally
    with tally.timed("encode"):
        layout, nonfinite = state.plans.layout(plan), tally.nonfinite > 0
        frames = [
            encode_frame(
                [sections[piece] for piece in part],
                layout=layout,
                step=state.step,
                nonfinite=nonfinite,
            )
            for part in plan.own_parts
        ]
        tally.frame_bytes += sum(frame.numel() for frame in frames)
    return frames


def send_whole(
    state: SieveState, parameter: ParameterState, flat: Tensor, pieces: Sequence[Piece]
) -> list[Section]:
    with state.tally.timed("encode"):
        values = flat.float().cpu().numpy()
        state.tally.nonfinite += values.size - int(np.count_nonzero(np.isfinite(values)))
        return [whole_section(values[piece.start : piece.stop], state.values) for piece in pieces]


def send_survivors(
    state: SieveState,
    parameter: ParameterState,
    flat: Tensor,
    pieces: Sequence[Piece],
    *,
    clear: bool,
) -> list[Section]:
    tally = state.tally
    if state.holds(flat):
        return [empty_section(piece.numel) for piece in pieces]
    flat, parameter.is_empty = flat.float(), False
    start, stop = pieces[0].start, pieces[-1].stop
    with tally.timed("rotate"):
        if parameter.rotation is not None:
            flat = rotate(state, parameter, parameter.rotation, flat)
    flat, left = flat[start:stop], parameter.flat_residual()[start:stop]
    with tally.timed("select"):
        threshold = state.steering.next(parameter, flat, left, state.step)
        indices, values, moments = select(flat, left, threshold, out=state.workspace, clear=clear)
        state.sent.append((parameter, start, indices, values))
        state.steering.observe(parameter, moments)
        if not state.error_feedback:
            left.zero_()
    with tally.timed("encode"):
        sections = [
            pruned_section(
                mine.numpy(),
                values_of_piece.numpy(),
                piece.numel,
                threshold,
                state.values,
                row=parameter.row,
                finite=moments.nonfinite == 0,
                residual=kept_for(state, left[piece.start - start : piece.stop - start]),
            )
            for piece, mine, values_of_piece in divided(pieces, *on_host(indices, values))
        ]
        parameter.squared_remainder = sum(section.squared_remainder for section in sections)
        if state.error_feedback and not left.is_cpu:
            parameter.squared_remainder = leave_remainder(left, indices, values, sections)
    tally.thresholds[parameter.name] = threshold
    tally.moments[parameter.name] = moments
    tally.nonfinite += moments.nonfinite
    return sections


def divided(
    pieces: Sequence[Piece], indices: Tensor, values: Tensor
) -> Iterator[tuple[Piece, Tensor, Tensor]]:
    """The survivors in each piece, counted from its start.

    Args:
        pieces: one behind the other.
        indices: ascending, counted from the start of the first piece.
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


def rotate(
    state: SieveState, parameter: ParameterState, rotation: Rotation, flat: Tensor
) -> Tensor:
    """The coefficients of a gradient; one is NaN where the gradient is not finite.

    Every coefficient of a block would be: the residual would get nothing of what is finite.
    """
    if math.isfinite(float(flat.sum())):
        return rotation.coefficients(flat)
    finite = flat.isfinite()
    coefficients = rotation.coefficients(torch.where(finite, flat, 0.0))
    bad = flat.numel() - int(finite.sum())
    if bad:
        if parameter.keeps(0):
            parameter.flat_residual()[0] += coefficients[0]
        coefficients[0] = math.nan
        # Selecting counts one.
        state.tally.nonfinite += bad - 1
    return coefficients


def kept_for(state: SieveState, left: Tensor) -> NDArray[np.float32] | None:
    """Where the encoder may leave what a section does not carry; a device's it cannot reach."""
    return left.numpy() if state.error_feedback and left.is_cpu else None


def leave_remainder(
    left: Tensor, indices: Tensor, values: Tensor, sections: Sequence[Section]
) -> float:
    """On a device: what the sections do not carry of finite values stays in the residual.

    Returns:
        The sum of squares of what stays.
    """
    if all(section.kind is Kind.FLOAT32 for section in sections):
        return 0.0
    sent = np.concatenate([section.survivors()[1] for section in sections])
    remainder = values - torch.from_numpy(sent).to(left.device)
    left.index_copy_(0, indices.long(), remainder)
    return float(remainder.square().sum())
