"""What a rank must save of its sieve to go on exactly, and the way back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradsieve.accounts import NO_ACCOUNT

if TYPE_CHECKING:
    from gradsieve.state import SieveState

VERSION = 1


def save_sieve(state: "SieveState") -> dict[str, Any]:
    """Between steps; returns and raises as `SieveState.state_dict`."""
    return {
        "version": VERSION,
        "step": state.step,
        "min_numel": state.registry.min_numel,
        "mean_square": state.steering.sizes.mean_square,
        "scale": state.steering.scale,
        "note": list(state.route.accounts.notes.mine),
        "parameters": state.registry.save(),
    }


def require_loadable(state: "SieveState", saved: Mapping[str, Any]) -> None:
    """Raise as `SieveState.load_state_dict`; changes nothing."""
    if saved.get("version") != VERSION:
        raise ValueError(
            f"expected a gradsieve state of version {VERSION}, found version "
            f"{saved.get('version')!r}"
        )
    if not {"step", "parameters"} <= saved.keys():
        raise ValueError("a saved state has a step and parameters; this one lacks them")
    state.registry.require_fit(saved["parameters"])


def load_sieve(state: "SieveState", saved: Mapping[str, Any]) -> None:
    """Between steps, what `require_loadable` lets pass."""
    if state.registry.min_numel is None:
        state.registry.min_numel = saved.get("min_numel")
    state.registry.load(saved["parameters"])
    state.steering.sizes.mean_square = saved.get("mean_square")
    if state.steering.budget is not None:
        state.steering.budget.scale = float(saved.get("scale", 1.0))
    note = list(saved.get("note", NO_ACCOUNT))
    # An earlier gradsieve told other numbers.
    state.route.accounts.notes.mine = note if len(note) == len(NO_ACCOUNT) else NO_ACCOUNT
    state.step = int(saved["step"])
    state.was_loaded = True
