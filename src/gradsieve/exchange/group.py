"""Process groups of the communication thread."""

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist


def group_of_its_own(
    group: dist.ProcessGroup, places: Sequence[int] | None = None, *, on_host: bool = True
) -> dist.ProcessGroup:
    """A group of ranks of `group`, with the same timeout; all of them must call it together.

    DDP and the training loop issue collectives on `group` while the communication thread issues
    its own: in one group their order would differ from rank to rank.

    Args:
        places: ranks in `group`; all of them if None.
        on_host: on Gloo, since frames are made and checked on the host; else on the backend of
            `group`.
    """
    ranks = dist.get_process_group_ranks(group)
    made = dist.new_group(
        ranks=[ranks[place] for place in places] if places is not None else ranks,
        timeout=timeout_of(group),
        backend="gloo" if on_host else dist.get_backend(group),
        use_local_synchronization=True,
    )
    if not isinstance(made, dist.ProcessGroup):
        raise RuntimeError(f"torch.distributed gave no process group but {made!r}")
    return made


def timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """The timeout of a group's collectives, where its backend tells; torch has no public word."""
    for name in ("cpu", "cuda"):
        try:
            options = group._get_backend(torch.device(name)).options
        except (RuntimeError, AttributeError):
            continue
        timeout = getattr(options, "_timeout", None)
        if isinstance(timeout, timedelta):
            return timeout
    return None
