"""What encoding and decoding take however little is sent."""

import time

import numpy as np
import torch

from gradsieve.averaging import Contribution, average_into
from gradsieve.codec import (
    Section,
    Values,
    decode_frame,
    encode_frame,
    pruned_section,
    whole_section,
)
from gradsieve.pieces import Piece, Plan

TRIES = 2
"""The quickest counts."""


def coding_overhead(plan: Plan, values: Values, ranks: int) -> float:
    """Seconds of one step: a frame is made, and as many as there are ranks are added up.

    In each of the pruned pieces one element is sent.
    """
    return min(one_try(plan, values, ranks) for _ in range(TRIES))


def one_try(plan: Plan, values: Values, ranks: int) -> float:
    total = torch.zeros(sum(parameter.numel for parameter in plan.parameters))
    start = time.thread_time()
    frames = [
        encode_frame([emptiest(plan, piece, values) for piece in part]) for part in plan.parts
    ]
    contributions = [
        Contribution(decode_frame(frame), part, 1.0)
        for frame, part in zip(frames, plan.parts, strict=True)
        for _ in range(max(1, ranks // len(frames)))
    ]
    cleared = [parameter.clears(torch.float32) for parameter in plan.parameters]
    average_into(total, contributions, [None] * len(cleared), cleared=cleared)
    return time.thread_time() - start


def emptiest(plan: Plan, piece: Piece, values: Values) -> Section:
    parameter = plan.parameters[piece.number]
    if parameter.whole:
        return whole_section(np.zeros(piece.numel, np.float32), values)
    one = np.ones(1, np.float32)
    return pruned_section(np.zeros(1, np.int32), one, piece.numel, 0.5, values, row=parameter.row)
