"""Tell every rank which parameters have gradients that are NaN or infinite, and on which rank."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from gradsieve.exchange.collectives import ranks_of
from gradsieve.exchange.frames import FrameExchange
from gradsieve.exchange.texts import another_version

NAMES = 20
"""Largest number of parameters that a rank names."""


def sources(exchange: FrameExchange, mine: Sequence[str]) -> dict[int, list[str]]:
    """Return the names of the parameters with non-finite gradients, for each rank that has any.

    All ranks must call it together.

    Args:
        mine: the names on this rank.

    Raises:
        ExchangeError: a rank has died or stalled.
        MismatchError: a rank has sent something else than names.
    """
    text = json.dumps(sorted({*mine})[:NAMES]).encode()
    seconds = exchange.notes.seconds
    arrived = exchange.to_all(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    # This exchange is not part of the step, so its time does not count.
    exchange.notes.seconds = seconds
    ranks = ranks_of(exchange.group)
    named = [names_in(other, rank) for other, rank in zip(arrived, ranks, strict=True)]
    return {rank: names for rank, names in zip(ranks, named, strict=True) if names}


def names_in(arrived: Tensor, rank: int) -> list[str]:
    """Return the names that a rank has sent. Raise MismatchError if they are no names."""
    try:
        names = json.loads(arrived.numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise another_version(rank) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise another_version(rank)
    return names
