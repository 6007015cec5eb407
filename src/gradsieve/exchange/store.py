"""Messages between ranks through the store of the job, without collectives.

The store is the one that torch.distributed was initialized with.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch.distributed import distributed_c10d

from gradsieve.runtime.torch_private import default_store

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05
"""Shortest and longest seconds between two looks into the store."""
T = TypeVar("T")


class StoreError(Exception):
    """There is no store, or it does not answer."""


class JobStore:
    """The part of the store whose keys begin with a name.

    To wait for a key, it asks again and again. If a thread waited in torch, no other thread could
    ask meanwhile, and torch would log each wait that times out.

    Raises:
        StoreError: there is no store, or it does not answer. Each method raises it, too.
    """

    def __init__(self, name: str) -> None:
        # A job that is started again may use the same store, so its keys need another prefix.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        with answered():
            prefix = f"gradsieve/{restart}/{name}"
            self._store = distributed_c10d.PrefixStore(prefix, default_store())

    def set(self, key: str, value: str) -> None:
        with answered():
            self._store.set(key, value)

    def get(self, key: str) -> str | None:
        """Return the value of a key; None if it is not set."""
        with answered():
            return self._store.get(key).decode() if self._store.check([key]) else None

    def set_unless_set(self, key: str, value: str) -> str:
        """Set a key unless it is set, and return its value, which is that of the first rank."""
        with answered():
            return str(self._store.compare_set(key, "", value).decode())

    def count(self, key: str, more: int = 0) -> int:
        """Add to a counter and return what all ranks have counted so far."""
        with answered():
            return int(self._store.add(key, more))

    def lacking(self, keys: Sequence[str]) -> list[str]:
        """Return the keys that are not set."""
        if not keys:
            return []
        with answered():
            if self._store.check(list(keys)):
                return []
        if len(keys) == 1:
            return list(keys)
        middle = len(keys) // 2
        return [*self.lacking(keys[:middle]), *self.lacking(keys[middle:])]

    def delete(self, key: str) -> None:
        with answered():
            self._store.delete_key(key)

    def wait(self, key: str, seconds: float) -> str | None:
        """Return the value of a key as soon as it is set; None if it is not set in time."""
        wait_until(lambda: not self.lacking([key]), seconds)
        return self.get(key)


@contextmanager
def answered() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, AttributeError) as error:
        raise StoreError(str(error)) from error


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Return whether `holds` becomes true before so many seconds are over."""
    end, pause = time.monotonic() + seconds, FIRST_PAUSE
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return True


def within(seconds: float, ask: Callable[[], T]) -> T | None:
    """Return what `ask` returns; None if there is no answer in time.

    It runs in a thread, since a store whose machine is gone may never answer.
    """
    found: list[T] = []

    def call() -> None:
        try:
            found.append(ask())
        except StoreError:
            return

    calling = threading.Thread(target=call, daemon=True)
    calling.start()
    calling.join(seconds)
    return found[0] if found else None
