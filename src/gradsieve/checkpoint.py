"""Checkpoints that keep every rank's own state: what a rank has not sent is on no other rank."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from gradsieve.gathering import Gathers, HasState, rank_and_size, require_job
from gradsieve.saved.leaf import Leaf, on_host


def save(state: HasState, folder: str | os.PathLike[str]) -> Path:
    """Write this rank's state to a file of its own in a folder. Call it on every rank.

    The ranks may share the folder. It is made if it is missing.

    Args:
        state: a `SieveState`, an `Averager` or an `OuterSync`.

    Returns:
        The file, ``sieve-rank<rank>.pt``, where the rank is that in the job. In a group that
        others manage it is ``sieve-replica<rank>-rank<rank>.pt``, with the rank in the group and
        that in the default process group, which is 0 where there is none.

    Raises:
        OSError: the file cannot be written. One that was there before is kept.
    """
    file = file_of_rank(state, folder)
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
    file = file_of_rank(state, folder)
    if not file.exists():
        found = len([*file.parent.glob("sieve-*.pt")])
        raise FileNotFoundError(
            f"{file} is missing ({found} ranks have saved there): every rank calls "
            "gs.checkpoint.save, and gs.reshard makes the states of another number of ranks"
        )
    state.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def file_of_rank(state: HasState, folder: str | os.PathLike[str]) -> Path:
    # The default process group may be absent, or have the ranks of one node: it does not tell the
    # ranks of a managed group apart. With FSDP the managed group does not tell shards apart.
    managed = state.managed_rank
    replica = "" if managed is None else f"replica{managed}-"
    return Path(folder) / f"sieve-{replica}rank{rank_and_size()[0]}.pt"


class PerRank:
    """Gives torch.distributed.checkpoint a state of which every rank keeps its own.

    That library keeps one copy of what has the same key on several ranks. Here the key has the
    rank in the job. A state that has just been made loads it, whether it is bound to its model or
    not. Save it with ``save`` or ``async_save``: it is copied when saving begins.

    Args:
        state: a `SieveState`, an `Averager` or an `OuterSync`.

    Example, in a process whose default process group is initialized:

        >>> import torch
        >>> import torch.distributed.checkpoint as dcp
        >>> import gradsieve as gs
        >>> from torch.nn.parallel import DistributedDataParallel as DDP
        >>> model = DDP(torch.nn.Linear(64, 64))
        >>> sieve = gs.attach(model, threshold=gs.Sigma(2), min_numel=64)
        >>> model(torch.randn(8, 64)).square().mean().backward()
        >>> metadata = dcp.save({"sieve": gs.checkpoint.PerRank(sieve)}, checkpoint_id="saved")
        >>> sieve.step = 7
        >>> dcp.load({"sieve": gs.checkpoint.PerRank(sieve)}, checkpoint_id="saved")
        >>> sieve.step
        1
    """

    def __init__(self, state: HasState) -> None:
        if not isinstance(state, Gathers):
            raise TypeError(
                f"PerRank takes a SieveState, an Averager or an OuterSync, got "
                f"{type(state).__name__}: give models and optimizers to the library themselves"
            )
        self._state = state

    def state_dict(self) -> dict[str, Leaf]:
        """Return this rank's state under a key of its own, on the CPU.

        Raises:
            SieveError: in a group that others manage.
        """
        # That library names its files by the rank in the default process group.
        require_job(self._state, "gs.checkpoint.PerRank")
        return {key_of_rank(): (on_host(self._state.state_dict()),)}

    def load_state_dict(self, state: Mapping[str, Leaf]) -> None:
        """Restore this rank's state. Load the weights of the model first.

        Raises:
            SieveError: in a group that others manage.
            ValueError: `state` lacks this rank's, or it does not fit; see
                `SieveState.load_state_dict`.
        """
        require_job(self._state, "gs.checkpoint.PerRank")
        if (key := key_of_rank()) not in state:
            raise ValueError(
                f"the checkpoint has states of {', '.join(state) or 'no rank'}, and none of {key}: "
                "gs.reshard makes the states of another number of ranks"
            )
        (own,) = state[key]
        self._state.load_state_dict(own)


def key_of_rank() -> str:
    return f"rank{rank_and_size()[0]}"
