"""The second shot of a two-shot exchange: each rank adds up its part and prunes the sum.

The pruned rest of a sum stays in a second residual, in units of the average. The rounding error of
parameters that travel whole stays in their remainder. All of this runs on the CPU, where the
frames are.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradsieve.bucket.encode import grid_of
from gradsieve.bucket.plan import Piece, Plan
from gradsieve.bucket.step import Step
from gradsieve.codec import Frame, Section, Values, encode_frame, pruned_section
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.whole import WholeGroup, round_whole
from gradsieve.sieve import Workspace, sample_magnitudes, select


def frame_of_sums(step: Step, plan: Plan, frames: Sequence[Frame]) -> Tensor:
    """Return the frame with the pruned sum of this rank's own part, for all ranks.

    Args:
        frames: the frames of this part from all ranks, in rank order.

    Raises:
        FrameError: a payload is damaged.
    """
    config = step.config
    sections = add_and_prune(plan, frames, config.values, error_feedback=config.error_feedback)
    frame = encode_frame(
        sections,
        layout=plan.digest,
        step=step.number,
        nonfinite=any(frame.nonfinite for frame in frames),
    )
    step.clock.frame_bytes += frame.numel()
    return frame


def add_and_prune(
    plan: Plan, frames: Sequence[Frame], values: Values, *, error_feedback: bool
) -> list[Section]:
    """Return a section for each piece of the rank's own part. See `frame_of_sums`."""
    sections = []
    for place, piece in enumerate(plan.parts[plan.place]):
        unit, name = plan.units[piece.number], f"section {place}"
        arrived = [frame.sections[place] for frame in frames]
        average = torch.zeros(piece.numel, dtype=torch.float32, device="cpu")
        for section in arrived:
            section.add_to(average.numpy(), 1.0 / len(frames), name)
        if isinstance(unit, WholeGroup):
            section, rest = round_whole(average, values, error_feedback=error_feedback)
            sections.append(section)
            if error_feedback and rest is not None:
                # The remainder is in units of a rank's own gradient, not of the average.
                unit.add_rounding_error(piece.start, len(frames) * rest)
            continue
        left = unit.owned_residual(piece.start, piece.stop)
        sections.append(prune(unit, piece, average, left, arrived, values, frames[0].step))
        if not error_feedback:
            left.zero_()
    return sections


def prune(
    parameter: ParameterState,
    piece: Piece,
    average: Tensor,
    left: Tensor,
    arrived: Sequence[Section],
    values: Values,
    step: int,
) -> Section:
    threshold = threshold_like(arrived, average, left, step)
    grid = grid_of(parameter.rotation)
    indices, chosen, moments = select(average, left, threshold, out=Workspace())
    return pruned_section(
        indices.numpy(),
        chosen.numpy(),
        piece.numel,
        threshold,
        values,
        row=parameter.row,
        finite=moments.nonfinite == 0,
        residual=left.numpy(),
        grid=None if grid is None else grid.of_piece(piece.start, piece.stop),
    )


def threshold_like(arrived: Sequence[Section], average: Tensor, left: Tensor, step: int) -> float:
    """Return a threshold for the sum that passes as many elements as a rank has sent on average.

    Both shots then have about the same size. If no rank has sent an element, none may pass, since
    DDP may drop the average. If all ranks have sent everything but zeros, so does the owner.
    """
    sent = sum(section.count for section in arrived)
    if not sent:
        return math.inf
    density = sent / len(arrived) / average.numel()
    if density == 1 or all(section.threshold == 0 for section in arrived):
        return 0.0
    return sample_magnitudes(average, left, step).threshold_for(density)
