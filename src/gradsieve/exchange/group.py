"""The process group of the communication thread."""

from datetime import timedelta

import torch
import torch.distributed as dist


def group_of_its_own(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """A Gloo group of the same ranks, with the same timeout; all of them must call it together.

    DDP and the training loop issue collectives on `group` while the communication thread issues
    its own: in one group their order would differ from rank to rank. Gloo, since frames are made
    and checked on the host.
    """
    made = dist.new_group(
        ranks=dist.get_process_group_ranks(group),
        timeout=timeout_of(group),
        backend="gloo",
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
