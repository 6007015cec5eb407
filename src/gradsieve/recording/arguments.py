"""Check the arguments of a Recorder and of its `log`."""

from collections.abc import Callable
from numbers import Real
from operator import index
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.shards import is_shard
from gradsieve.state import SieveState


def require_number(name: str, value: object) -> None:
    """Raise TypeError unless `value` is one number, without waiting for a device.

    Ranks that write nothing check it, too, so that all ranks fail alike.
    """
    is_one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
    if not is_one:
        raise TypeError(f"log: {name} must be a number, got {value!r}")


def chooser(every: int | Callable[[int], bool]) -> Callable[[int], bool]:
    if callable(every):
        return every
    steps = index(every)
    if steps < 0:
        raise ValueError(f"histograms_every must be 0 or more, got {steps}")
    return lambda step: steps > 0 and step % steps == 0


def group_of(model: nn.Module, state: SieveState | None) -> dist.ProcessGroup:
    if isinstance(model, DistributedDataParallel):
        return model.process_group
    group = dist.group.WORLD if state is None else state.engine.groups.known_group()
    if group is None:
        raise ValueError("a Recorder wants a DDP model, or an initialized default group")
    return group


def directory_of(out: str | Path, model: nn.Module, first_rank: int) -> Path:
    """Return where the ranks of a group record, of which `first_rank` writes."""
    shards = first_rank > 0 and any(map(is_shard, model.parameters()))
    return Path(out) / f"rank{first_rank}" if shards else Path(out)
