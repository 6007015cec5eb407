"""Decode the frames that have arrived into contributions to the average."""

from collections.abc import Sequence

from torch import Tensor

from gradsieve.bucket.average import Contribution
from gradsieve.bucket.plan import Plan
from gradsieve.bucket.step import Step
from gradsieve.codec import Frame, decode_frame
from gradsieve.codec.errors import refuse


def averaged(
    step: Step, plan: Plan, arrived: Sequence[Sequence[Tensor]], *, own: Tensor
) -> list[Contribution]:
    """Return contributions that add up to the mean of the frames of each part.

    Args:
        arrived: the frames of each part.
        own: the frame that this rank has sent.

    Raises:
        FrameError: a frame is damaged, or belongs to another step or part.
    """
    with step.clock.timed("decode"):
        return [
            Contribution(
                read_frame(step, plan, frame, place, own=frame is own), part, 1.0 / len(frames)
            )
            for place, (frames, part) in enumerate(zip(arrived, plan.parts, strict=True))
            for frame in frames
        ]


def read_frame(step: Step, plan: Plan, frame: Tensor, place: int, *, own: bool) -> Frame:
    """Decode a frame of the part `place`.

    Raises:
        FrameError: it is damaged, or belongs to another step or part.
    """
    decoded = decode_frame(frame, layout=plan.digest, numels=plan.numels(place), own=own)
    number = step.number % 2**32
    if decoded.step != number:
        refuse("step", f"{decoded.step}, this rank is at {number}")
    return decoded
