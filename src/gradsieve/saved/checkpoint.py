"""What a rank must save of its sieve to go on exactly, and the way back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from gradsieve.exchange.groups import Members
from gradsieve.saved.seal import sealed
from gradsieve.saved.sieve import (
    VERSION,
    finite_note,
    lines_of,
    require_min_numel,
    require_own_place,
    require_scale,
    require_settings,
    require_sound,
)

if TYPE_CHECKING:
    from gradsieve.state import SieveState


def save_sieve(state: "SieveState") -> dict[str, Any]:
    """Between steps; returns and raises as `SieveState.state_dict`."""
    rank, world_size = place_in(state.members)
    return sealed(
        {
            "version": VERSION,
            "rank": rank,
            "world_size": world_size,
            "settings": lines_of(state.settings),
            "step": state.step,
            "min_numel": state.registry.min_numel,
            "weights": state.registry.weights(),
            "mean_square": state.steering.sizes.mean_square,
            "scale": state.steering.scale,
            "note": finite_note(state.route.accounts.notes.mine),
            "parameters": state.registry.save(),
        }
    )


def require_loadable(
    state: "SieveState", saved: object, weights: Mapping[str, int] | None = None
) -> Mapping[str, Any]:
    """What `load_sieve` can take; raises as `SieveState.load_state_dict` and changes nothing.

    Args:
        weights: checksums of the parameters as they will be; if None those that they have.
    """
    found = require_sound(saved)
    require_own_place(found["rank"], found["world_size"], *place_in(state.members))
    require_settings(found["settings"], lines_of(state.settings))
    budget = state.steering.budget
    require_scale(found["scale"], None if budget is None else budget.largest_scale)
    require_min_numel(found["min_numel"], state.registry.min_numel)
    state.registry.require_fit(found["parameters"], found["weights"], weights)
    if found["step"] and not found["parameters"]:
        raise ValueError(f"the saved state is of step {found['step']} and has no parameters")
    return found


def load_sieve(state: "SieveState", saved: Mapping[str, Any]) -> None:
    """Between steps, what `require_loadable` lets pass."""
    if state.registry.min_numel is None:
        state.registry.min_numel = saved["min_numel"]
    state.registry.load(saved["parameters"], saved["weights"])
    state.steering.sizes.mean_square = saved["mean_square"]
    if state.steering.budget is not None:
        state.steering.budget.scale = float(saved["scale"])
    state.route.accounts.notes.mine = list(saved["note"])
    state.step = saved["step"]
    state.loaded_place = saved["rank"], saved["world_size"]


def fault_of_loaded(state: "SieveState", first: list[Tensor]) -> str:
    """Why a state that was loaded is not that of this rank and model, where that shows only now.

    Args:
        first: parameters of the first bucket of a step, before anything is exchanged.

    Returns:
        Nothing where it is right.
    """
    if state.loaded_place is None:
        return ""
    try:
        require_own_place(*state.loaded_place, *place_in(state.members))
        state.registry.require_awaited(first)
    except ValueError as error:
        return str(error)
    return ""


def place_in(members: Members) -> tuple[int, int]:
    """This rank in the process group and the group's size; 0 of 1 without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return members.group.rank(), members.group.size()
