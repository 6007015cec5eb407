"""What a rank must save to resume local steps: its own OuterSync, optimizers and weights."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from gradsieve.errors import SieveError
from gradsieve.outer import OuterSync

VERSION = "of local steps"
"""The version of a saved `LocalState`. A `SieveState` that is to load one names it in its error."""


class Stateful(Protocol):
    """An optimizer or a ``GradScaler``."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class LocalState:
    """What a rank must save to resume local steps exactly: all of it differs between ranks.

    `gradsieve.checkpoint.save` and `load` take it.

    Args:
        outer: the `OuterSync`.
        optimizers: the inner optimizers.
        model: the module that is averaged; None if it is saved only when all ranks have the same
            weights, after `OuterSync.finish`.
        scaler: the object that scales this rank's loss.
    """

    def __init__(
        self,
        outer: OuterSync,
        optimizers: Sequence[Stateful],
        model: nn.Module | None = None,
        scaler: Stateful | None = None,
    ) -> None:
        self.outer, self.optimizers, self.model, self.scaler = outer, optimizers, model, scaler
        self._finished_at = outer.inner_steps

    @property
    def managed_rank(self) -> int | None:
        """See `OuterSync.managed_rank`."""
        return self.outer.managed_rank

    def finish(self) -> None:
        """Do what `OuterSync.finish` does."""
        self.outer.finish()
        self._finished_at = self.outer.inner_steps

    def require_finished(self) -> None:
        """Raise SieveError if the ranks have made local steps since `finish`."""
        if self.outer.inner_steps != self._finished_at:
            raise SieveError(
                "the model was to be evaluated or saved between two exchanges, where each rank has "
                "weights of its own: list SieveCallback after the callback that asked for it"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "model": None if self.model is None else self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "outer": self.outer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore what `state_dict` has returned on the same rank.

        Raises:
            ValueError: the state was saved without local steps, with another number of optimizers,
                or for a reason of `OuterSync.load_state_dict`.
        """
        require_kind(state, local=True)
        if len(state["optimizers"]) != len(self.optimizers):
            raise ValueError(
                f"{len(state['optimizers'])} optimizers were saved, and there are "
                f"{len(self.optimizers)}: give the same ones in the same order"
            )
        if self.model is not None:
            # A module may leave out what is frozen. The OuterSync compares all that is trained.
            self.model.load_state_dict(state["model"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.outer.load_state_dict(state["outer"])
        if self.model is None:
            self._finished_at = self.outer.inner_steps


def require_kind(state: Mapping[str, Any], *, local: bool) -> None:
    """Raise ValueError if a state was saved with local steps and is loaded without, or vice versa.

    Args:
        state: the state of a `LocalState` or of a `SieveState`.
        local: whether local steps go on with it.
    """
    if ("outer" in state) != local:
        saved, now = ("without", "with") if local else ("with", "without")
        raise ValueError(
            f"the checkpoint was saved {saved} local steps, and training goes on {now} them: go on "
            "as before, or load the weights of the model alone"
        )
