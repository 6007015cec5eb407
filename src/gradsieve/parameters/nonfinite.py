"""Whose gradients are NaN or infinite, told to every rank."""

import json
import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.exchange import FrameExchange
from gradsieve.exchange.words import another_version
from gradsieve.telemetry.clock import Tally

NAMES = 20
"""A rank tells of so many parameters at most."""


def is_finite(flat: Tensor) -> bool:
    """Whether all elements are; one pass, where they are."""
    # A sum of finite numbers may overflow.
    return math.isfinite(float(flat.sum())) or bool(flat.isfinite().all())


def note_nonfinite(tally: Tally, named: Sequence[tuple[str, int]], flat: Tensor) -> None:
    """Take down what is not finite of this rank's gradients.

    Args:
        named: names and numbers of elements of the parameters that lie in `flat`.
    """
    if parts := nonfinite_parts(flat, [numel for _, numel in named]):
        tally.nonfinite += flat.numel() - int(flat.isfinite().sum())
        tally.nonfinite_names += [named[part][0] for part in parts]


def nonfinite_parts(flat: Tensor, numels: Sequence[int]) -> list[int]:
    """Which of the parts, `numels` long, hold a number that is not finite."""
    if is_finite(flat):
        return []
    starts = torch.tensor([*accumulate(numels, initial=0)][:-1], dtype=torch.int64, device="cpu")
    places = (~flat.isfinite()).nonzero().squeeze(1).cpu()
    return sorted({*(torch.searchsorted(starts, places, right=True) - 1).tolist()})


def sources(exchange: FrameExchange, mine: Sequence[str]) -> dict[int, list[str]]:
    """Rank → its parameters whose gradients are not finite; all ranks ask together.

    Args:
        mine: those of this rank.

    Raises:
        ExchangeError: a rank has died or stalled.
        MismatchError: a rank has sent something else.
    """
    text = json.dumps(sorted({*mine})[:NAMES]).encode()
    seconds = exchange.notes.seconds
    arrived = exchange.to_all(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    # Ranks have not waited for this in the step.
    exchange.notes.seconds = seconds
    ranks = dist.get_process_group_ranks(exchange.group)
    named = [names_in(other, rank) for other, rank in zip(arrived, ranks, strict=True)]
    return {rank: names for rank, names in zip(ranks, named, strict=True) if names}


def names_in(arrived: Tensor, rank: int) -> list[str]:
    """Raises MismatchError where a rank has sent something else."""
    try:
        names = json.loads(arrived.numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise another_version(rank) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise another_version(rank)
    return names
