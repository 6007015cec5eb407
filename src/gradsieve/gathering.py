"""The states of all ranks in one, for tools that write one file."""

import io
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import SieveError
from gradsieve.exchange.gather import gather_on_first
from gradsieve.saved.fields import count, items, with_keys

VERSION = 1
FIELDS = ("version", "world_size", "states")


class HasState(Protocol):
    """A `SieveState`, an `Averager` or an `OuterSync`."""

    @property
    def managed_rank(self) -> int | None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class Gathers:
    """Adds the state dicts of all ranks in one to an object that has its own."""

    @property
    def managed_rank(self) -> int | None:
        """The rank in a group that others manage; None in a group of torch.distributed."""
        return None

    def gathered_state_dict(self: HasState) -> dict[str, Any]:
        """Return on rank 0 what `state_dict` returns on every rank, for a tool that writes one
        file. Call it on every rank of the job.

        ``torch.load`` reads the file with ``weights_only=True``. Rank 0 holds the states of all
        ranks at once in CPU memory, and one more while they arrive.

        Returns:
            a dict with the states in rank order as ``"states"``, which `reshard` takes, and their
            number as ``"world_size"``. On other ranks than 0 the list of states is empty.

        Raises:
            ExchangeError: a rank has died, has stalled, or does not call it.
            SieveError: on every rank, where `state_dict` raises on one. Also in a group that
                others manage.
        """
        return gathered(self)

    def load_gathered(self: HasState, state: Mapping[str, Any]) -> None:
        """Restore this rank's own of what `gathered_state_dict` has returned on rank 0.

        Load the weights of the model first. The file may be opened with ``mmap=True``, so that
        each rank reads its own state only.

        Raises:
            ValueError: `state` is no such dict or is that of another number of ranks. Also what
                `load_state_dict` raises.
        """
        self.load_state_dict(own_of(state))


def gathered(state: HasState) -> dict[str, Any]:
    """Return what `Gathers.gathered_state_dict` returns."""
    require_job(state, "gathered_state_dict()")

    def packed() -> Tensor:
        file = io.BytesIO()
        torch.save(state.state_dict(), file)
        return torch.from_numpy(np.frombuffer(file.getbuffer(), dtype=np.uint8))

    arrived = gather_on_first(packed, "gathered_state_dict()")
    return {
        "version": VERSION,
        "world_size": rank_and_size()[1],
        "states": list(unpacked(arrived)),
    }


def require_job(state: HasState, call: str) -> None:
    """Raise SieveError if torch.distributed does not know which ranks train together."""
    if state.managed_rank is not None:
        raise SieveError(
            f"{call} needs the ranks of the default process group, which does not know those of a "
            "group that others manage: call gs.checkpoint.save(outer, folder) on every rank, which "
            "writes a file for each, or save outer.state_dict() under a name of its own"
        )


def unpacked(arrived: Iterator[Tensor]) -> Iterator[dict[str, Any]]:
    for content in arrived:
        file = io.BytesIO(content.numpy().data)
        yield torch.load(file, map_location="cpu", weights_only=True)


def own_of(saved: object) -> dict[str, Any]:
    """Return this rank's own of the states that were gathered.

    Raises:
        ValueError: they are not valid, or there is another number of them.
    """
    if isinstance(saved, Mapping) and "rank" in saved:
        raise ValueError("this is the state of one rank: give it to load_state_dict")
    found = with_keys("what was gathered", saved, FIELDS)
    count("version", found["version"], VERSION, VERSION)
    rank, world_size = rank_and_size()
    states, size = items("states", found["states"]), count("world_size", found["world_size"], 1)
    if not states:
        raise ValueError(
            f"this file has the states of none of {size} ranks, since it was not saved by rank 0: "
            "gathered_state_dict() gathers them there"
        )
    items("states", states, size)
    if size != world_size:
        raise ValueError(
            f"the states were gathered from {size} ranks and are loaded by {world_size}: "
            f'gs.reshard(saved["states"], {world_size}) makes those of {world_size} ranks'
        )
    own: dict[str, Any] = states[rank]
    return own


def rank_and_size() -> tuple[int, int]:
    """Return the rank in the job and the number of ranks; 0 and 1 without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
