"""Local steps of a framework that saves and evaluates the model by itself."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from gradsieve.errors import SieveError
from gradsieve.outer import OuterSync

VERSION = "of local steps"
"""The version of a saved `LocalRun`. A `SieveState` that is to load one names it in its error."""


class LocalRun:
    """An `OuterSync` and the inner optimizer of this rank, saved and loaded as one.

    The inner optimizers differ from rank to rank, and frameworks save that of rank 0 alone.
    """

    def __init__(self, outer: OuterSync, optimizer: Optimizer) -> None:
        self.outer = outer
        self._optimizer = optimizer
        self._is_merged = True

    def step(self) -> None:
        """Do what `OuterSync.step` does."""
        self.outer.step()
        self._is_merged = False

    def finish(self) -> None:
        """Do what `OuterSync.finish` does."""
        self.outer.finish()
        self._is_merged = True

    def require_merged(self, advice: str) -> None:
        """Raise SieveError unless `finish` was called after the last step."""
        if not self._is_merged:
            raise SieveError(
                "the model was to be evaluated or saved between two exchanges, where each rank has "
                f"weights of its own: {advice}"
            )

    def state_dict(self) -> dict[str, Any]:
        inner = self._optimizer.state_dict()
        return {"version": VERSION, "outer": self.outer.state_dict(), "inner": inner}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore what `state_dict` has returned. Load the model first.

        Raises:
            ValueError: the state was saved without local steps, or for a reason of
                `OuterSync.load_state_dict`.
        """
        if state.get("version") != VERSION:
            raise ValueError(
                "the checkpoint was saved without local steps. Resume it without them, or delete "
                "its sieve-rank*.pt to begin local steps without what is still to be sent"
            )
        self.outer.load_state_dict(state["outer"])
        self._optimizer.load_state_dict(state["inner"])
