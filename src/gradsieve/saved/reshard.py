"""Resume a run with another number of ranks.

The ranks have pruned elements that they have not sent yet. In units of the averaged gradient this
debt is the mean of the residuals over ranks, plus the sum over ranks of the residuals of sums. It
stays the same, up to one rounding to float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsieve.saved.fields import count, shown
from gradsieve.saved.leaf import Leaf
from gradsieve.saved.memory import from_memory_order, in_memory_order
from gradsieve.saved.outer import require_sound_outer
from gradsieve.saved.seal import checksum_of, sealed
from gradsieve.saved.sieve import named_shards, require_sound, shards_in
from gradsieve.telemetry.report import NO_REPORT

State = Mapping[str, Any]
Shares = Sequence[tuple[int, float]]
"""The old ranks that make up a new one, with the share of each."""


def reshard(states: Sequence[State], world_size: int) -> list[dict[str, Any]]:
    """Turn the saved states of all ranks of a run into those of `world_size` ranks.

    Each rank of the new run loads its own, after the same model. The sum of what all ranks have
    not sent yet stays the same, in units of the averaged gradient. No process group is needed.

    Args:
        states: the results of `SieveState.state_dict` or `OuterSync.state_dict` on all ranks, at
            the same step and in any order. Call `OuterSync.finish` right before its `state_dict`.
        world_size: the number of ranks of the new run, 1 or more.

    Returns:
        The new states, in rank order.

    Raises:
        ValueError: a state is missing, given twice or damaged, or belongs to another run or step
            than the others. Also if local steps are not finished, or `world_size` is no positive
            number.

    Example, in a process whose default process group is initialized:

        >>> import torch
        >>> import gradsieve as gs
        >>> from torch.nn.parallel import DistributedDataParallel as DDP
        >>> model = DDP(torch.nn.Linear(64, 64))
        >>> sieve = gs.attach(model, threshold=gs.Sigma(2), min_numel=64)
        >>> model(torch.randn(8, 64)).square().mean().backward()
        >>> states = gs.reshard([sieve.state_dict()], 2)  # from 1 rank to 2
        >>> [(state["rank"], state["world_size"]) for state in states]
        [(0, 2), (1, 2)]
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"world_size must be a whole number from 1, got {world_size!r}")
    states = list(states)
    if any(isinstance(state, Mapping) and "sieve" in state for state in states):
        return reshard_outer(all_ranks(states, require_sound_outer), world_size)
    return reshard_sieves(all_ranks(states, require_sound), world_size)


def all_ranks(states: Sequence[State], require: Any) -> list[State]:
    """Check the states with `require`, and return them in rank order."""
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
            require_one_shard([found[sound["rank"]], sound])
            raise ValueError(f"states[{place}] is rank {sound['rank']}'s, and so is one before it")
        found[sound["rank"]] = sound
    require_one_shard(list(found.values()))
    ranks = max(state["world_size"] for state in found.values())
    if missing := [rank for rank in range(ranks) if rank not in found]:
        raise ValueError(
            f"the states are of a run of {ranks} ranks, and those of ranks "
            f"{', '.join(map(str, missing))} are missing"
        )
    return [found[rank] for rank in range(ranks)]


def require_one_shard(states: Sequence[State]) -> None:
    """Raise ValueError if the states are of several shards, which do not go together."""
    first, *others = [shards_in(state["settings"]) for state in states]
    for other in others:
        if other != first:
            raise ValueError(
                f"the states are of {named_shards(first)} and of {named_shards(other)}: give "
                "reshard the states of one shard at a time, from all ranks that hold it"
            )


def require_alike(states: Sequence[State], fields: Sequence[str], of: str = "") -> None:
    """Raise ValueError if a field is not the same on all ranks. The message names a rank."""
    for field in fields:
        digests = [checksum_of({field: state[field]}) for state in states]
        for rank, other in enumerate(digests):
            if other != digests[0]:
                raise ValueError(
                    f"{of}{field} of rank {rank}'s state is not that of rank 0's: give the states "
                    "that all ranks of one run have saved at the same step"
                )


def shares_of(old: int, new: int) -> list[Shares]:
    """Return the shares of the old ranks in each new one.

    The old and the new ranks divide the same line. A new rank is made up of the old ranks that it
    overlaps. The shares in a new rank add up to 1. The shares of an old rank add up to new / old.
    """
    found: list[Shares] = []
    for rank in range(new):
        # The line has a length of old · new.
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
    """Return the state of the old rank with the largest share."""
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
    """Return all that a rank keeps of a parameter (float64), in units of its own gradient."""
    residual = parameter["residual"]
    flat = in_memory_order(residual.double().cpu(), parameter["stride"])
    if parameter["dealt"] is not None:
        # A piece for the node is in units of the mean of the node.
        flat *= parameter["dealt"][2]
    if parameter["owned"] is not None:
        start, pruned = parameter["owned"]
        # The residual of sums is in units of the average of all ranks.
        flat[start : start + pruned.numel()] += ranks * pruned.double().cpu()
    return from_memory_order(flat, residual.shape, parameter["stride"])


def mixed(kept: Sequence[Tensor], shares: Shares) -> Tensor:
    total = torch.zeros_like(kept[0])
    for rank, share in shares:
        total += share * kept[rank]
    return total.float()


def moments_of_all(parameter: State) -> Leaf:
    """Return the saved moments, without those of a piece, which no rank keeps any more."""
    (moments,) = parameter["moments"]
    if moments is None or moments["numel"] != parameter["residual"].numel():
        return (None,)
    return (dict(moments),)


def reshard_outer(states: Sequence[State], world_size: int) -> list[dict[str, Any]]:
    for rank, state in enumerate(states):
        if state["under_way"][0] is not None or state["schedule"]["place"]:
            raise ValueError(
                f"rank {rank}'s state is of the middle of a phase of local steps, in which the "
                "ranks' weights differ: call finish() on all ranks, then state_dict()"
            )
    count("world_size", states[0]["world_size"], len(states), len(states))
    alike = ("settings", "schedule", "names", "weights", "model", "optimizer")
    require_alike(states, alike)
    sieves = reshard_sieves([state["sieve"] for state in states], world_size)
    if world_size == len(states):
        inherited = [inherited_by(state, world_size) for state in states]
    else:
        # Nobody goes on as the rank that has learned it.
        inherited = [all_residuals(sieve) for sieve in sieves]
    shared = {**states[0], "world_size": world_size}
    return [
        sealed({**shared, "rank": rank, "sieve": sieve, "inherited": (others,)})
        for rank, (sieve, others) in enumerate(zip(sieves, inherited, strict=True))
    ]


def inherited_by(state: State, ranks: int) -> dict[str, Tensor]:
    """Return what a rank has inherited once the pieces that it keeps for others are its residual.

    Args:
        ranks: the number of ranks, which stays the same.
    """
    (before,) = state["inherited"]
    found = {}
    for name, parameter in state["sieve"]["parameters"].items():
        pieces = [parameter["owned"], parameter["dealt"]]
        if name not in before and pieces == [None, None]:
            continue
        others = parameter
        if parameter["dealt"] is None:
            kept = before.get(name, torch.zeros_like(parameter["residual"]))
            others = {**parameter, "residual": kept}
        found[name] = whole_residual(others, ranks).float()
    return found


def all_residuals(sieve: State) -> dict[str, Tensor]:
    """Return the residuals of the parameters that are pruned."""
    return {
        name: parameter["residual"].clone()
        for name, parameter in sieve["parameters"].items()
        if parameter["residual"].numel() >= sieve["min_numel"]
    }
