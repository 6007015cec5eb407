"""Texts that ranks tell each other in a collective. They are checked, since a rank may run another
version of gradsieve."""

import torch

from gradsieve.errors import MismatchError
from gradsieve.exchange.collectives import all_gather, ranks_of
from gradsieve.exchange.managed import AnyGroup, ManagedGroup
from gradsieve.runtime.torch_private import device_types

LONGEST = 2**26
"""Largest number of bytes of a text."""


def texts_of_all(group: AnyGroup, text: str) -> list[str]:
    """Return the text of every rank, in rank order. All ranks of `group` must call it together.

    The collectives are those of ``torch.distributed.all_gather_object``. A rank that still calls
    that (the `OuterSync` of an earlier gradsieve) therefore stays in step, and is named.

    Raises:
        MismatchError: on every rank, if one has sent something else than text, or more than 64 MiB.
        RuntimeError: a rank has died or stalled.
    """
    ranks, device = ranks_of(group), device_of(group)
    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([mine.numel()], dtype=torch.int64, device=device)
    sizes = [int(other) for other in all_gather(size, group)]
    for rank, other in zip(ranks, sizes, strict=True):
        if other > LONGEST:
            raise MismatchError(f"rank {rank} tells {other} bytes of itself, {LONGEST} at most")
        if other < 1:
            raise another_version(rank)
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: mine.numel()] = mine
    texts = []
    for rank, other, found in zip(ranks, sizes, all_gather(padded, group), strict=True):
        try:
            texts.append(found[:other].cpu().numpy().tobytes().decode())
        except UnicodeDecodeError as error:
            raise another_version(rank) from error
    return texts


def counts_of_all(group: AnyGroup, mine: int) -> list[int]:
    """Return the number of every rank, 0 or more. See `texts_of_all`."""
    texts = texts_of_all(group, str(mine))
    for rank, text in zip(ranks_of(group), texts, strict=True):
        if not (text.isascii() and text.isdigit()):
            raise another_version(rank)
    return [int(text) for text in texts]


def another_version(rank: int) -> MismatchError:
    return MismatchError(
        f"rank {rank} runs another version of gradsieve, whose words this one cannot read; "
        "install the same version on every rank"
    )


def device_of(group: AnyGroup) -> torch.device:
    """Return a device on which the group takes tensors: the CPU if its backends support it."""
    if isinstance(group, ManagedGroup):
        return torch.device("cpu")
    kinds = device_types(group)
    if "cpu" in kinds or not kinds:
        return torch.device("cpu")
    kind = sorted(kinds)[0]
    return torch.device(kind, torch.get_device_module(kind).current_device())
