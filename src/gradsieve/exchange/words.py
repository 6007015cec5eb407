"""Texts that ranks tell each other in a collective: checked, since they come from outside."""

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import MismatchError
from gradsieve.runtime.torch_private import device_types

LONGEST = 2**26
"""The most bytes that a text may have."""


def texts_of_all(group: dist.ProcessGroup, text: str) -> list[str]:
    """Return every rank's text, in rank order; all ranks of `group` call it together.

    The collectives are those of torch's `all_gather_object`: a rank that still calls it (an earlier
    gradsieve's `OuterSync`) stays in step, and is named.

    Raises:
        MismatchError: on every rank, where one has sent what is no text, or one of over 64 MiB.
        RuntimeError: a rank has died or stalled.
    """
    ranks, device = dist.get_process_group_ranks(group), device_of(group)
    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([mine.numel()], dtype=torch.int64, device=device)
    sizes = [int(other) for other in gathered(group, size)]
    for rank, other in zip(ranks, sizes, strict=True):
        if other > LONGEST:
            raise MismatchError(f"rank {rank} tells {other} bytes of itself, {LONGEST} at most")
        if other < 1:
            raise another_version(rank)
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: mine.numel()] = mine
    texts = []
    for rank, other, found in zip(ranks, sizes, gathered(group, padded), strict=True):
        try:
            texts.append(found[:other].cpu().numpy().tobytes().decode())
        except UnicodeDecodeError as error:
            raise another_version(rank) from error
    return texts


def counts_of_all(group: dist.ProcessGroup, mine: int) -> list[int]:
    """Return every rank's number, 0 or more; it is called and raises as `texts_of_all`."""
    texts = texts_of_all(group, str(mine))
    for rank, text in zip(dist.get_process_group_ranks(group), texts, strict=True):
        if not (text.isascii() and text.isdigit()):
            raise another_version(rank)
    return [int(text) for text in texts]


def another_version(rank: int) -> MismatchError:
    return MismatchError(
        f"rank {rank} runs another version of gradsieve, whose words this one cannot read; "
        "install the same version on every rank"
    )


def gathered(group: dist.ProcessGroup, mine: Tensor) -> list[Tensor]:
    arrived = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(arrived, mine, group=group)
    return arrived


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Return the device on which the group takes tensors: the host, if its backends take that."""
    kinds = device_types(group)
    if "cpu" in kinds or not kinds:
        return torch.device("cpu")
    kind = sorted(kinds)[0]
    return torch.device(kind, torch.get_device_module(kind).current_device())
