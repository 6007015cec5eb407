"""Small messages from other ranks to the first of a group, through the store of the job.

They need no collective, so that nobody waits for a rank that makes no recorder or has died.
"""

from contextlib import suppress
from itertools import count

import torch.distributed as dist

from gradsieve.exchange.store import JobStore, StoreError

numbers = count()
READER = "reader"


class Mailbox:
    """A mailbox of a group. All ranks must make their mailboxes in the same order."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._store = JobStore(f"mail/{next(numbers)}")
        self.ranks = dist.get_process_group_ranks(group)
        self.is_first = dist.get_rank() == self.ranks[0]
        if self.is_first:
            self._store.set(READER, "here")

    def send(self, subject: str, message: str) -> None:
        """Send a message to the first rank, if that reads. Unread ones would fill the store."""
        # An error is ignored, because the machine that holds the store may be gone.
        with suppress(StoreError):
            if self._store.get(READER) is not None:
                self._store.set(f"{subject}/{dist.get_rank()}", message)

    def collect(self, subject: str, rank: int) -> str | None:
        """Return what `rank` has sent, once; None if nothing has come."""
        key = f"{subject}/{rank}"
        message = None
        with suppress(StoreError):
            message = self._store.get(key)
            if message is not None:
                self._store.delete(key)
        return message
