"""A copy or pickle of a state: its settings and what it keeps; no threads, groups or listeners."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from torch.nn.parallel import DistributedDataParallel

from gradsieve.errors import SieveError
from gradsieve.runtime.torch_private import comm_hooks, set_comm_hooks

if TYPE_CHECKING:
    from gradsieve.state import SieveState


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy remembers until it is bound."""

    saved: dict[str, Any]
    """As the original saved it, without the parameters."""
    is_numbered: bool
    """The original was not bound to a model, and numbered its parameters."""


def packed(state: "SieveState") -> dict[str, Any]:
    """Between steps, what a copy of the state is made of."""
    saved, registry = state.save(), state.sieve.parameters
    header = {name: value for name, value in saved.items() if name != "parameters"}
    copied = state.copied or Copied(header, registry.is_numbered)
    return {"config": state.config, "parameters": registry, "copied": copied}


def unpack(state: "SieveState", found: dict[str, Any]) -> None:
    """Make a new object a copy."""
    # What pickle makes has not been initialized.
    state.__init__(found["config"])  # type: ignore[misc]
    state.sieve.parameters, state.copied = found["parameters"], found["copied"]
    state.sieve.number = int(found["copied"].saved["step"])


def take_up(state: "SieveState", copied: Copied, bind: Callable[[], None]) -> None:
    """Bind a copy by `bind`, and let the parameters have what it keeps of them.

    Raises:
        ValueError: the model is another one, or as `SieveState.load_state_dict`.
    """
    saved, before = state.save(), state.sieve.parameters
    state.sieve.parameters, state.copied = before.blank(), None
    try:
        bind()
        # One that had met no parameters keeps nothing of any.
        if saved["parameters"]:
            state.load(saved)
    except BaseException:
        state.sieve.parameters, state.copied = before, copied
        raise


def require_scaler(copied: Copied, scaler: object) -> None:
    """Raise SieveError where a copy is bound without what scales the loss, or with it in vain."""
    had = "scaler=given" in copied.saved["settings"]
    if had and scaler is None:
        raise SieveError(
            "the state that this is a copy of was told the scaler of the loss: give the copy the "
            "scaler that it is to follow, state.bind(model, scaler=scaler)"
        )
    if scaler is not None and not had:
        raise SieveError("the state that this is a copy of had no scaler; attach a new state")


def require_taken_up(state: "SieveState") -> None:
    if state.copied is not None:
        raise SieveError(
            "this SieveState is a copy, which serves no model yet: bind it with state.bind(model) "
            "and register it with model.register_comm_hook(state, gs.sieve_hook), or attach anew "
            "with gs.attach(model)"
        )


def is_copy(state: object) -> bool:
    """A copied model remembers a copy of the original's state, and has no hook."""
    return isinstance(getattr(state, "copied", None), Copied)


def drop_copies(model: DistributedDataParallel) -> None:
    """Each holds residuals as large as the model, which the new state does not take over."""
    set_comm_hooks(model, [entry for entry in comm_hooks(model) if not is_copy(entry[1])])


def refuse_copy(what: str, instead: str) -> NoReturn:
    """Raise TypeError where something cannot be copied or pickled."""
    raise TypeError(f"{what} cannot be copied or pickled: {instead}")
