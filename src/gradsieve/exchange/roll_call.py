"""Which ranks are there no more, after an exchange has failed."""

import os
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

PATIENCE = timedelta(seconds=5)
"""Until a rank that has not noticed the failure as well counts as absent."""


def absent_ranks(group: dist.ProcessGroup) -> list[int]:
    """Numbers of the ranks of `group` that do not answer, among all ranks of the job.

    Every rank calls it when an exchange of its own fails, and leaves its answer in the store that
    the job was started with. None where that has gone too.
    """
    ranks = dist.get_process_group_ranks(group)
    try:
        # torch has no public word for it.
        store = distributed_c10d.PrefixStore(prefix(), distributed_c10d._get_default_store())
        store.set(str(dist.get_rank()), "here")
        wait_for_all(store, ranks)
        return [rank for rank in ranks if not store.check([str(rank)])]
    except (RuntimeError, AttributeError, ValueError):
        return []


def prefix() -> str:
    # A job that is started again has the same store.
    return f"gradsieve/answers/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def wait_for_all(store: distributed_c10d.Store, ranks: list[int]) -> None:
    with suppress(RuntimeError):
        store.wait([str(rank) for rank in ranks], PATIENCE)
