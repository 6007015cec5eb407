"""Which ranks are there no more, after an exchange has failed."""

import os
import threading
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

PATIENCE = timedelta(seconds=5)
"""Until a rank that has not noticed the failure as well counts as absent."""
FOUND = "absent"


def absent_ranks(group: dist.ProcessGroup) -> list[int]:
    """Numbers of the ranks that do not answer, among all ranks of the job.

    Every rank calls it when an exchange of its own fails, and leaves its answer in the store that
    the job was started with. Where all ranks of `group` answer, one of them has failed for
    another's sake, and has left word of it. Empty where nobody knows.
    """
    found: list[int] = []
    # A thread, since a store whose machine is gone may never answer.
    calling = threading.Thread(target=call, args=(group, found), daemon=True)
    calling.start()
    calling.join(3 * PATIENCE.total_seconds())
    return list(found)


def call(group: dist.ProcessGroup, found: list[int]) -> None:
    """Put the absent ranks into `found`."""
    ranks = dist.get_process_group_ranks(group)
    with suppress(RuntimeError, AttributeError, ValueError):
        # torch has no public word for it.
        store = distributed_c10d.PrefixStore(prefix(), distributed_c10d._get_default_store())
        store.set(str(dist.get_rank()), "here")
        wait_for(store, [str(rank) for rank in ranks])
        absent = [rank for rank in ranks if not store.check([str(rank)])]
        if absent:
            store.set(FOUND, ",".join(map(str, absent)))
            found += absent
            return
        wait_for(store, [FOUND])
        word = store.get(FOUND).decode() if store.check([FOUND]) else ""
        found += [int(rank) for rank in word.split(",") if rank]


def prefix() -> str:
    # A job that is started again has the same store.
    return f"gradsieve/answers/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def wait_for(store: distributed_c10d.Store, keys: list[str]) -> None:
    with suppress(RuntimeError):
        store.wait(keys, PATIENCE)
