"""Small messages from other ranks to the first of a group, through the store of the job.

No collective: a rank that writes no record, or has died, makes nobody wait.
"""

import os
from contextlib import suppress
from itertools import count

import torch.distributed as dist
from torch.distributed import distributed_c10d

numbers = count()


class Mailbox:
    """Made in the same order on all ranks, one at a time."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        # torch has no public word for the store; a job that is started again has the same one.
        self._store = distributed_c10d.PrefixStore(
            f"gradsieve/mail/{restart}/{next(numbers)}", distributed_c10d._get_default_store()
        )
        self.ranks = dist.get_process_group_ranks(group)
        self.is_first = dist.get_rank() == self.ranks[0]

    def send(self, subject: str, message: str) -> None:
        """To the first rank, which may collect it or not."""
        with suppress(RuntimeError):
            self._store.set(f"{subject}/{dist.get_rank()}", message)

    def collect(self, subject: str, *, whatever_is_there: bool = False) -> list[str] | None:
        """The messages of the other ranks; None while some are missing."""
        keys = [f"{subject}/{rank}" for rank in self.ranks[1:]]
        try:
            if whatever_is_there:
                keys = [key for key in keys if self._store.check([key])]
            elif keys and not self._store.check(keys):
                return None
            messages = [self._store.get(key).decode() for key in keys]
            for key in keys:
                self._store.delete_key(key)
        except RuntimeError:
            # The machine that holds the store is gone, or cannot delete.
            return []
        return messages
