"""Small messages from other ranks to the first of a group, through the store of the job.

No collective: a rank that writes no record, or has died, makes nobody wait.
"""

import os
from contextlib import suppress
from itertools import count

import torch.distributed as dist
from torch.distributed import distributed_c10d

numbers = count()
READER = "reader"


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
        if self.is_first:
            self._store.set(READER, "here")

    def send(self, subject: str, message: str) -> None:
        """To the first rank, if it reads at all: what nobody collects would fill the store."""
        # The machine that holds the store may be gone.
        with suppress(RuntimeError):
            if self._store.check([READER]):
                self._store.set(f"{subject}/{dist.get_rank()}", message)

    def collect(self, subject: str, rank: int) -> str | None:
        """What `rank` has sent, once; None where nothing has come."""
        key = f"{subject}/{rank}"
        try:
            if not self._store.check([key]):
                return None
            message: str = self._store.get(key).decode()
        except RuntimeError:
            return None
        with suppress(RuntimeError):
            self._store.delete_key(key)
        return message
