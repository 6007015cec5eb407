"""Save the state of a parameter as plain data, and load it again."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gradsieve.parameters.memory import flat_of, laid_out
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.pieces import Dealt, Owned
from gradsieve.saved.memory import order_in_memory
from gradsieve.saved.parameter import MOMENTS
from gradsieve.sieve import Moments

SavedParameter = Mapping[str, Any]


def save_parameter(kept: ParameterState) -> SavedParameter:
    owned, rotation = kept.owned, kept.rotation
    return {
        "threshold": kept.threshold,
        "moments": (None if kept.moments is None else saved_moments(kept.moments),),
        "mean_square": kept.mean_square,
        "residual": kept.residual.detach().contiguous().clone(),
        "stride": list(kept.stride),
        "rotation": None if rotation is None else rotation.save(),
        "owned": None if owned is None else (owned.start, owned.residual.clone()),
        "dealt": None if kept.dealt is None else tuple(kept.dealt),
    }


def saved_moments(moments: Moments) -> dict[str, float]:
    """Return the fields of moments, all of them finite.

    Only the sum of the squared gradient can be infinite or NaN. It is then saved as 0, since it is
    not used after its step.
    """
    squares = moments.gradient_square_sum
    finite = replace(moments, gradient_square_sum=squares if math.isfinite(squares) else 0.0)
    return {name: getattr(finite, name) for name in MOMENTS}


def require_parameter_fits(kept: ParameterState, saved: SavedParameter) -> None:
    """Raise ValueError if `load_parameter` cannot take what has passed `require_parameter`."""
    residual, rotation = saved["residual"], saved["rotation"]
    if (rotation is None) != (kept.rotation is None):
        raise ValueError(
            f"parameter {kept.name}: the saved state has {'no' if rotation is None else 'a'} "
            "rotation, this one has the opposite: the parameter is of another size, or min_numel "
            "and rotation are not what they were when saving"
        )
    if residual.shape != kept.shape:
        raise ValueError(
            f"parameter {kept.name}: the saved residual is {list(residual.shape)}, the "
            f"parameter {list(kept.shape)}"
        )
    if kept.rotation is not None:
        kept.rotation.require_fit(kept.name, rotation)
    require_order(kept, saved)


def require_order(kept: ParameterState, saved: SavedParameter) -> None:
    """Raise ValueError if pieces or coefficients belong to elements in another order in memory."""
    pieces = [saved[field] for field in ("rotation", "owned", "dealt")]
    theirs, mine = (order_in_memory(kept.shape, s) for s in (saved["stride"], kept.stride))
    if theirs == mine or all(piece is None for piece in pieces):
        return
    todo = (
        "lay the model out as it was when saving (model.to(memory_format=...))"
        if kept.rotation is not None
        else "gs.reshard makes states without pieces, also for as many ranks as before"
    )
    raise ValueError(
        f"parameter {kept.name}: its elements lie in another order in memory than when "
        f"saving (dimensions {mine}, then {theirs}, from the outermost); {todo}"
    )


def load_parameter(kept: ParameterState, saved: SavedParameter) -> None:
    """Load what has passed `require_parameter_fits`."""
    owned, dealt, (moments,) = saved["owned"], saved["dealt"], saved["moments"]
    kept.restore(
        saved["residual"].detach(),
        # Sums are pruned on the CPU, wherever the state was loaded to.
        None if owned is None else Owned(owned[0], owned[1].detach().cpu().clone()),
        None if dealt is None else Dealt(*dealt),
    )
    if kept.rotation is not None:
        kept.rotation.load(saved["rotation"])
    kept.threshold, kept.mean_square = saved["threshold"], saved["mean_square"]
    kept.moments = None if moments is None else Moments(**moments)


def save_inherited(kept: ParameterState) -> Tensor | None:
    """Return what is inherited, as `save_parameter` saves the residual; None for nothing."""
    flat = kept.inherited.flat
    return None if flat is None else flat.as_strided(kept.shape, kept.stride).contiguous().clone()


def load_inherited(kept: ParameterState, saved: Tensor | None) -> None:
    """Load what `save_inherited` has saved, after the residual."""
    if saved is not None:
        saved = flat_of(laid_out(saved.detach().to(kept.device), kept.stride))
    kept.inherited.become(saved)
