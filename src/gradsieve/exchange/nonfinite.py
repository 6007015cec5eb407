"""Whose gradients are NaN or infinite, told to every rank."""

import json
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.exchange.frames import FrameExchange
from gradsieve.exchange.words import another_version

NAMES = 20
"""The largest number of parameters that a rank tells of."""


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
