"""Checkpoints that keep every rank's own state: what a rank has not sent is on no other rank."""

import os
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist


class HasState(Protocol):
    """A `SieveState`, an `Averager` or an `OuterSync`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def save(state: HasState, folder: str | os.PathLike[str]) -> Path:
    """Write this rank's state to a file of its own in a folder. Call it on every rank.

    The ranks may share the folder. It is made if it is missing.

    Returns:
        The file, ``sieve-rank<rank>.pt``.
    """
    file = file_of_rank(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(state.state_dict(), part)
    # A process that is killed meanwhile leaves the file of the checkpoint before.
    os.replace(part, file)
    return file


def load(state: HasState, folder: str | os.PathLike[str]) -> None:
    """Restore what `save` has written on the same rank. Load the model first.

    Raises:
        FileNotFoundError: the folder has no file of this rank.
        ValueError: the state does not fit; see `SieveState.load_state_dict`.
    """
    file = file_of_rank(folder)
    if not file.exists():
        found = len([*file.parent.glob("sieve-rank*.pt")])
        raise FileNotFoundError(
            f"{file} is missing ({found} ranks have saved there): every rank calls "
            "gs.checkpoint.save, and gs.reshard makes the states of another number of ranks"
        )
    state.load_state_dict(torch.load(file, weights_only=True))


def file_of_rank(folder: str | os.PathLike[str]) -> Path:
    rank = dist.get_rank() if dist.is_initialized() else 0
    return Path(folder) / f"sieve-rank{rank}.pt"
