"""Copy or pickle a state.

A copy has the options and the residuals. It has no threads, groups or observers, so it must be
bound to a model before it is used.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

from torch.nn.parallel import DistributedDataParallel

from gradsieve.errors import SieveError
from gradsieve.runtime.torch_private import comm_hooks, set_comm_hooks


@dataclass(frozen=True, slots=True)
class Copied:
    """The content of a copy until it is bound."""

    saved: dict[str, Any]
    """What the original has saved, without the parameters."""
    is_numbered: bool
    """Whether the original was not bound to a model and has numbered its parameters."""


def require_scaler(copied: Copied, scaler: object) -> None:
    """Raise SieveError if a copy is bound without the scaler that the original had, or with one
    that it had not."""
    had = "scaler=given" in copied.saved["settings"]
    if had and scaler is None:
        raise SieveError(
            "the state that this is a copy of was told the scaler of the loss: give the copy the "
            "scaler that it is to follow, state.bind(model, scaler=scaler)"
        )
    if scaler is not None and not had:
        raise SieveError("the state that this is a copy of had no scaler; attach a new state")


def refuse_unbound() -> NoReturn:
    """Raise SieveError for a copy that is used before it is bound."""
    raise SieveError(
        "this SieveState is a copy, which serves no model yet: bind it with state.bind(model) "
        "and register it with model.register_comm_hook(state, gs.sieve_hook), or attach anew "
        "with gs.attach(model)"
    )


def is_copy(state: object) -> bool:
    """Return whether a state is a copy. A copied model has such a state, but no hook."""
    return isinstance(getattr(state, "copied", None), Copied)


def drop_copies(model: DistributedDataParallel) -> None:
    """Remove the copied states of a copied model, whose residuals would only take memory."""
    set_comm_hooks(model, [entry for entry in comm_hooks(model) if not is_copy(entry[1])])


def refuse_copy(what: str, instead: str) -> NoReturn:
    """Raise TypeError for an object that cannot be copied or pickled."""
    raise TypeError(f"{what} cannot be copied or pickled: {instead}")
