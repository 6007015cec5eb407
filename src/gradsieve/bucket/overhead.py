"""Measure the time that encoding and decoding take however little is sent.

A budget needs it, because a higher threshold does not reduce this time.
"""

import time

import numpy as np
import torch
from torch import Tensor

from gradsieve.bucket.average import Contribution, average_into
from gradsieve.bucket.plan import Part, Piece, Plan
from gradsieve.codec import (
    Section,
    Values,
    decode_frame,
    encode_frame,
    pruned_section,
    whole_section,
)

TRIES = 2
"""Number of measurements, of which the fastest counts."""


def coding_overhead(plan: Plan, values: Values, ranks: int) -> float:
    """Return the seconds of coding in a step that sends one element of each pruned piece."""
    return min(one_try(plan, values, ranks) for _ in range(TRIES))


def one_try(plan: Plan, values: Values, ranks: int) -> float:
    frames = [emptiest_frame(plan, part, values) for part in plan.parts]
    numel = sum(unit.numel for unit in plan.units)
    total = torch.zeros(numel, dtype=torch.float32, device="cpu")
    cleared = plan.cleared(torch.float32)
    start = time.thread_time()
    for part in plan.own_parts:
        emptiest_frame(plan, part, values)
    if plan.prunes_sums:
        for _ in range(ranks):
            decode_frame(frames[plan.place])
        emptiest_frame(plan, plan.parts[plan.place], values)
        copies = 1
    else:
        copies = ranks // len(frames)
    contributions = [
        Contribution(decode_frame(frame), part, 1.0)
        for frame, part in zip(frames, plan.parts, strict=True)
        for _ in range(copies)
    ]
    average_into(total, contributions, [None] * len(cleared), cleared=cleared)
    return time.thread_time() - start


def emptiest_frame(plan: Plan, part: Part, values: Values) -> Tensor:
    return encode_frame([emptiest(plan, piece, values) for piece in part])


def emptiest(plan: Plan, piece: Piece, values: Values) -> Section:
    unit = plan.units[piece.number]
    if unit.whole:
        return whole_section(np.zeros(piece.numel, np.float32), values)
    one = np.ones(1, np.float32)
    return pruned_section(np.zeros(1, np.int32), one, piece.numel, 0.5, values, row=unit.row)
