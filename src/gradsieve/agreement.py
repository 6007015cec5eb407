"""Whether all ranks mean the same: compared in words at the first step, by digest in each frame."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed as dist

from gradsieve.errors import SieveError
from gradsieve.exchange.frames import unreachable


@dataclass(frozen=True, slots=True)
class Description:
    """What must be alike on every rank."""

    settings: tuple[str, ...]
    """Lines such as ``min_numel=2048``."""
    parameters: tuple[str, ...]
    """Lines such as ``conv1.weight [32, 1, 5, 5] torch.float32``, in the model's order."""


def require_agreement(mine: Description, group: dist.ProcessGroup) -> None:
    """Compare with every rank through the group.

    Raises:
        ExchangeError: a rank has died or stalled.
        SieveError: on every rank, naming the ranks and the first line that differs.
    """
    gathered: list[Description | None] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(gathered, mine, group=group)
    except RuntimeError as error:
        raise unreachable(group, error) from error
    first = gathered[0]
    for rank, other in enumerate(gathered):
        if first is None or other is None or other == first:
            continue
        what = "settings" if other.settings != first.settings else "models"
        ours, theirs = first_difference(
            (*first.settings, *first.parameters), (*other.settings, *other.parameters)
        )
        raise SieveError(
            f"the ranks have different {what}: rank 0 has {ours}, rank {rank} has {theirs}. "
            "Build the model and attach gradsieve in the same way on every rank."
        )


def first_difference(left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, str]:
    for ours, theirs in zip(left, right, strict=False):
        if ours != theirs:
            return ours, theirs
    return f"{len(left)} lines", f"{len(right)} lines"


def digest(lines: Iterable[str]) -> int:
    """64 bits of a hash over lines."""
    text = "\n".join(lines).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
