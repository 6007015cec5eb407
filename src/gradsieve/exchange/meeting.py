"""Let ranks meet without a collective: each writes a word (a short text) to the store of the job.

A collective would hang if a rank did not take part.
"""

import torch.distributed as dist

from gradsieve.errors import named_ranks
from gradsieve.exchange.store import JobStore, wait_until
from gradsieve.runtime.notices import tell

ALIKE, DIFFER = "alike", "differ"
SECONDS_TO_READ = 2.0
"""Seconds that a rank which has read the words waits for the others to read them. It may be the
host of the store, which ends with it."""


class Meeting:
    """A meeting of the ranks of a group. Ranks that come under the same name meet.

    Raises:
        StoreError: the store does not answer. Each method raises it, too.
    """

    def __init__(self, group: dist.ProcessGroup, name: str) -> None:
        self.ranks = dist.get_process_group_ranks(group)
        self._store = JobStore(f"meetings/{group.group_name}/{name}")
        self._has_come = False
        self.first = ""
        """The word of the rank that came first."""

    def come(self, word: str) -> None:
        """Write a word, once.

        A rank whose word is not that of the first decides DIFFER. The last rank to come decides
        ALIKE. The first decision holds.
        """
        if self._has_come:
            return
        self._has_come = True
        self._store.set(str(dist.get_rank()), word)
        self.first = self._store.set_unless_set("first", word)
        if word != self.first:
            self.decide(DIFFER)
        if self._store.count("came", 1) == len(self.ranks):
            self.decide(ALIKE)

    def decide(self, verdict: str) -> str:
        """Propose a verdict and return the one that holds, which is the first."""
        return self._store.set_unless_set("verdict", verdict)

    def verdict(self, seconds: float = 0.0) -> str | None:
        """Return the verdict; None if nothing is decided in time."""
        return self._store.wait("verdict", seconds)

    def missing(self) -> list[int]:
        """Return the ranks that have not come."""
        return [int(rank) for rank in self._store.lacking([str(rank) for rank in self.ranks])]

    def words(self, seconds: float) -> dict[int, str]:
        """Return the word of each rank that comes in time."""
        wait_until(lambda: self._store.count("came") == len(self.ranks), seconds)
        words = {rank: self._store.get(str(rank)) for rank in self.ranks}
        said = {rank: word for rank, word in words.items() if word is not None}
        self._store.count("read", 1)
        wait_until(lambda: self._store.count("read") >= len(said), SECONDS_TO_READ)
        return said

    def forget(self) -> None:
        """Delete the meeting from the store, once nobody needs its outcome any more."""
        for key in (str(dist.get_rank()), "first", "came", "verdict"):
            self._store.delete(key)

    def warn_of_missing(self, what: str) -> None:
        """Warn of the ranks that have not come. The first of the others does it."""
        missing = self.missing()
        present = [rank for rank in self.ranks if rank not in {*missing}]
        if missing and present and dist.get_rank() == present[0]:
            tell(f"gradsieve waits for {named_ranks(missing)}: {what}", any_rank=True)


def in_words(said: dict[int, str]) -> str:
    """Return words by rank, such as ``ranks 0, 2: gather; rank 1: dense``."""
    by_word: dict[str, list[int]] = {}
    for rank, word in said.items():
        by_word.setdefault(word, []).append(rank)
    return "; ".join(f"{named_ranks(ranks)}: {word}" for word, ranks in by_word.items())
