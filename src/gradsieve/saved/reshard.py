"""Another number of ranks: the saved states of all ranks become those of as many as there will be.

What is owed to the weights is what the ranks have pruned and not sent yet. In units of the averaged
gradient it is the mean over ranks of residuals, plus the sum over ranks of what they have pruned of
sums. It stays the same, to one rounding to float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsieve.saved.fields import count, shown
from gradsieve.saved.memory import from_memory_order, in_memory_order
from gradsieve.saved.outer import require_sound_outer
from gradsieve.saved.seal import checksum_of, sealed
from gradsieve.saved.sieve import require_sound
from gradsieve.telemetry.report import NO_REPORT

State = Mapping[str, Any]
Shares = Sequence[tuple[int, float]]
"""Old ranks, and the share that each has in a new one."""


def reshard(states: Sequence[State], world_size: int) -> list[dict[str, Any]]:
    """The states of `world_size` ranks, in rank order, from those of all ranks of a run.

    Load them as the ranks' own, after the same model: what all ranks together have not sent yet
    stays the same. No process group is needed.

    Args:
        states: what `SieveState.state_dict` or `OuterSync.state_dict` has returned on each rank, at
            the same step, in any order; of `OuterSync` right after `finish`.

    Raises:
        ValueError: a state is missing, given twice, damaged, or not of the same step of the same
            run as the others; an exchange of local steps is not finished; or the number of ranks
            is not positive.
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"world_size must be a whole number from 1, got {world_size!r}")
    states = list(states)
    if any(isinstance(state, Mapping) and "sieve" in state for state in states):
        return reshard_outer(all_ranks(states, require_sound_outer), world_size)
    return reshard_sieves(all_ranks(states, require_sound), world_size)


def all_ranks(states: Sequence[State], require: Any) -> list[State]:
    """The checked states of one run, in rank order."""
    found: dict[int, State] = {}
    if not states:
        raise ValueError("reshard takes the states of all ranks, got none")
    for place, state in enumerate(states):
        try:
            sound = require(state)
        except ValueError as error:
            rank = state.get("rank", "unknown") if isinstance(state, Mapping) else "unknown"
            raise ValueError(f"states[{place}] (rank {shown(rank)}): {error}") from error
        if sound["rank"] in found:
            raise ValueError(f"states[{place}] is rank {sound['rank']}'s, and so is one before it")
        found[sound["rank"]] = sound
    ranks = max(state["world_size"] for state in found.values())
    if missing := [rank for rank in range(ranks) if rank not in found]:
        raise ValueError(
            f"the states are of a run of {ranks} ranks, and those of ranks "
            f"{', '.join(map(str, missing))} are missing"
        )
    return [found[rank] for rank in range(ranks)]


def require_alike(states: Sequence[State], fields: Sequence[str], of: str = "") -> None:
    """Raise ValueError, naming the ranks, where a field is not the same on all of them."""
    for field in fields:
        digests = [checksum_of({field: state[field]}) for state in states]
        for rank, other in enumerate(digests):
            if other != digests[0]:
                raise ValueError(
                    f"{of}{field} of rank {rank}'s state is not that of rank 0's: give the states "
                    "that all ranks of one run have saved at the same step"
                )


def shares_of(old: int, new: int) -> list[Shares]:
    """The shares of each new rank: ranks lie side by side, and those that it overlaps make it up.

    The shares of a new rank add up to 1, and those of an old rank over all new ones to new / old.
    """
    found: list[Shares] = []
    for rank in range(new):
        # In units of 1 / (old · new).
        start, stop = rank * old, (rank + 1) * old
        overlaps = [
            (other, min(stop, (other + 1) * new) - max(start, other * new)) for other in range(old)
        ]
        found.append([(other, overlap / old) for other, overlap in overlaps if overlap > 0])
    return found


def reshard_sieves(states: Sequence[State], world_size: int) -> list[dict[str, Any]]:
    fields = ("world_size", "step", "settings", "min_numel", "weights", "scale")
    require_alike(states, fields)
    names = list(states[0]["parameters"])
    for rank, state in enumerate(states):
        if {*state["parameters"]} != {*names}:
            raise ValueError(f"rank {rank}'s state has other parameters than rank 0's")
    shares = shares_of(len(states), world_size)
    parameters: list[dict[str, Any]] = [{} for _ in shares]
    for name in names:
        old = [state["parameters"][name] for state in states]
        for made, parameter in zip(parameters, reshard_parameter(name, old, shares), strict=True):
            made[name] = parameter
    return [
        sealed(
            {
                **nearest(states, own),
                "rank": rank,
                "world_size": world_size,
                "note": list(NO_REPORT),
                "parameters": made,
            }
        )
        for rank, (own, made) in enumerate(zip(shares, parameters, strict=True))
    ]


def nearest(old: Sequence[State], shares: Shares) -> State:
    """The state of the old rank that a new one has most of."""
    return old[max(shares, key=lambda share: share[1])[0]]


def reshard_parameter(
    name: str, old: Sequence[State], shares: Sequence[Shares]
) -> list[dict[str, Any]]:
    require_alike(old, ("stride", "rotation"), f"parameter {name}: ")
    kept = [whole_residual(parameter, len(old)) for parameter in old]
    shapes = {flat.shape for flat in kept}
    if len(shapes) > 1:
        raise ValueError(f"parameter {name}: the ranks' residuals are of different shapes")
    made = []
    for own in shares:
        like = nearest(old, own)
        made.append(
            {
                **like,
                "moments": moments_of_all(like),
                "residual": mixed(kept, own),
                "owned": None,
                "dealt": None,
            }
        )
    return made


def whole_residual(parameter: State, ranks: int) -> Tensor:
    """What a rank keeps of a parameter, as if all of it were its own gradient's; float64."""
    residual = parameter["residual"]
    flat = in_memory_order(residual.double().cpu(), parameter["stride"])
    if parameter["dealt"] is not None:
        # In units of the mean of so many ranks.
        flat *= parameter["dealt"][2]
    if parameter["owned"] is not None:
        start, pruned = parameter["owned"]
        # In units of the average of all.
        flat[start : start + pruned.numel()] += ranks * pruned.double().cpu()
    return from_memory_order(flat, residual.shape, parameter["stride"])


def mixed(kept: Sequence[Tensor], shares: Shares) -> Tensor:
    total = torch.zeros_like(kept[0])
    for rank, share in shares:
        total += share * kept[rank]
    return total.float()


def moments_of_all(parameter: State) -> Any:
    """None where they are of a piece, which is another rank's from now on."""
    moments = parameter["moments"]
    if moments is None or moments["numel"] != parameter["residual"].numel():
        return None
    return dict(moments)


def reshard_outer(states: Sequence[State], world_size: int) -> list[dict[str, Any]]:
    for rank, state in enumerate(states):
        if state["under_way"] is not None or state["schedule"]["place"]:
            raise ValueError(
                f"rank {rank}'s state is of the middle of a phase of local steps, in which the "
                "ranks' weights differ: call finish() on all ranks, then state_dict()"
            )
    count("world_size", states[0]["world_size"], len(states), len(states))
    require_alike(states, ("settings", "schedule", "names", "weights", "model", "optimizer"))
    sieves = reshard_sieves([state["sieve"] for state in states], world_size)
    return [
        sealed({**states[0], "rank": rank, "world_size": world_size, "sieve": sieve})
        for rank, sieve in enumerate(sieves)
    ]
