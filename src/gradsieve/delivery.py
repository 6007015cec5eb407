"""The way of one bucket, in the communication thread: select, encode, exchange, decode.

The backward pass computes other buckets meanwhile.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsieve.bucket.average import Contribution, average_into
from gradsieve.bucket.encode import encode_frames, give_whole, sieve_gradients
from gradsieve.bucket.plan import Plan
from gradsieve.bucket.sums import add_and_prune
from gradsieve.codec import Frame, decode_frame, encode_frame
from gradsieve.codec.errors import refuse
from gradsieve.parameters.nonfinite import is_finite, note_nonfinite
from gradsieve.state import SieveState


def deliver(state: SieveState, plan: Plan, buffer: Tensor) -> Tensor:
    """Replace this rank's gradients in the bucket's `buffer` by the average of all ranks.

    On as many threads as torch had when the communication thread started.
    """
    tally = state.tally
    state.changes.touch(plan.units)
    plan.settle_sums(state.members.group.size())
    plan.deal(state.members.add_up_on_node)
    if plan.way == "hierarchical":
        with tally.timed("add"):
            note_nonfinite(tally, plan.layout.named, buffer)
            give_whole(state, plan, buffer)
            state.members.nodes.average(buffer)
    sections = sieve_gradients(state, plan, buffer)
    frames = encode_frames(state, plan, sections)
    contributions = EXCHANGES[plan.way](state, plan, state.plans.layout(plan), frames)
    with tally.timed("decode"):
        average_into(
            buffer,
            contributions,
            [unit.rotation for unit in plan.units],
            torch.get_num_threads(),
            plan.cleared(buffer.dtype),
            plan.layout.places,
            state.loss_scale.now,
        )
    tally.overhead += state.overhead(plan)
    # The average, times the loss scale, may leave the range of the buffer, on all ranks alike.
    is_safe = buffer.dtype is torch.float32 and state.loss_scale.now <= 1
    overflowed = not (is_safe or is_finite(buffer))
    tally.nonfinite_anywhere |= overflowed or any(c.frame.nonfinite for c in contributions)
    return buffer


def gather(
    state: SieveState, plan: Plan, layout: int, frames: Sequence[Tensor]
) -> list[Contribution]:
    """Every rank's frame travels to every other rank."""
    (frame,) = frames
    with state.tally.timed("exchange"):
        arrived = state.members.everyone.to_all(frame)
    return averaged(state, plan, layout, [arrived], frame)


def two_shot(
    state: SieveState, plan: Plan, layout: int, frames: Sequence[Tensor]
) -> list[Contribution]:
    """Every part travels to its owner, which adds it up, prunes the sum and sends that to all."""
    rank = plan.place
    with state.tally.timed("exchange"):
        arrived = state.members.everyone.to_each(frames)
    with state.tally.timed("decode"):
        parts = [
            decoded_frame(other, layout, plan.numels(rank), state.step, own=other is frames[rank])
            for other in arrived
        ]
        sections = add_and_prune(
            plan, rank, parts, state.values, error_feedback=state.error_feedback
        )
        sums = encode_frame(
            sections,
            layout=layout,
            step=state.step,
            nonfinite=any(part.nonfinite for part in parts),
        )
        state.tally.second_frame_bytes += sums.numel()
    with state.tally.timed("exchange"):
        arrived = state.members.everyone.to_all(sums)
    with state.tally.timed("decode"):
        return [
            Contribution(
                decoded_frame(other, layout, plan.numels(owner), state.step, own=other is sums),
                part,
                1.0,
            )
            for owner, (other, part) in enumerate(zip(arrived, plan.parts, strict=True))
        ]


def hierarchical(
    state: SieveState, plan: Plan, layout: int, frames: Sequence[Tensor]
) -> list[Contribution]:
    """Every node's frame of a part travels to every other node, and from there within it."""
    (frame,) = frames
    with state.tally.timed("exchange"):
        arrived = state.members.nodes.to_all(frame)
    return averaged(state, plan, layout, arrived, frame)


def averaged(
    state: SieveState, plan: Plan, layout: int, arrived: Sequence[Sequence[Tensor]], own: Tensor
) -> list[Contribution]:
    """The frames that arrived of each part count alike; `own` is the one of this rank."""
    with state.tally.timed("decode"):
        return [
            Contribution(
                decoded_frame(other, layout, plan.numels(place), state.step, own=other is own),
                part,
                1.0 / len(frames),
            )
            for place, (frames, part) in enumerate(zip(arrived, plan.parts, strict=True))
            for other in frames
        ]


EXCHANGES = {"gather": gather, "two-shot": two_shot, "hierarchical": hierarchical}


def decoded_frame(
    frame: Tensor, layout: int, numels: Sequence[int], step: int, *, own: bool
) -> Frame:
    """Raises FrameError where `frame` is not this step's, of the pieces of `numels` elements."""
    decoded = decode_frame(frame, layout=layout, numels=numels, own=own)
    step %= 2**32
    if decoded.step != step:
        refuse("step", f"{decoded.step}, this rank is at {step}")
    return decoded
