"""Find out which ranks are gone after an exchange has failed."""

import time
from collections.abc import Callable

import torch.distributed as dist

from gradsieve.exchange.store import JobStore, wait_until, within

Stop = Callable[[], bool]

PATIENCE = 5.0
"""Seconds after which a rank that has not reported the failure counts as absent."""
SHORT_PATIENCE = 1.0
"""Seconds for the same if one rank is missing and a connection has broken. All ranks that are alive
notice a broken connection at once."""
FOUND = "absent"


def absent_ranks(
    group: dist.ProcessGroup, error: BaseException, stop: Stop = lambda: False
) -> list[int]:
    """Return the ranks of the job that do not answer; none if nobody knows.

    Every rank calls it when an exchange of its own fails, and writes its answer to the store of
    the job. If all ranks of `group` answer, one of them has failed because of a rank in another
    group, and has written which.

    Args:
        error: the failure of the exchange. Ranks notice a timeout at different times, because each
            began to wait at its own time.
        stop: returns whether the answer is no longer needed.
    """
    broken = "timed out" not in str(error).lower()
    patience_with_one = SHORT_PATIENCE if broken else PATIENCE
    return within(3 * PATIENCE, lambda: call(group, patience_with_one, stop)) or []


def call(group: dist.ProcessGroup, patience_with_one: float, stop: Stop) -> list[int]:
    store = JobStore("answers")
    store.set(str(dist.get_rank()), "here")
    absent = [str(rank) for rank in dist.get_process_group_ranks(group)]
    start = since = time.monotonic()

    def is_known() -> bool:
        nonlocal absent, since
        now, left = time.monotonic(), store.lacking(absent)
        if len(left) < len(absent):
            absent, since = left, now
        patience = patience_with_one if len(absent) == 1 else PATIENCE
        return not absent or now > min(since + patience, start + PATIENCE) or stop()

    wait_until(is_known, 2 * PATIENCE)
    if stop():
        return []
    if absent:
        store.set(FOUND, ",".join(absent))
    else:
        wait_until(lambda: stop() or not store.lacking([FOUND]), PATIENCE)
        absent = (store.get(FOUND) or "").split(",")
    return [int(rank) for rank in absent if rank]
