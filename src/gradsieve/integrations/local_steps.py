"""Local steps in a framework that wraps the model in DDP by itself."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel

from gradsieve.config import SieveConfig
from gradsieve.errors import SieveError
from gradsieve.hook import require_no_hook
from gradsieve.outer import OuterSync
from gradsieve.state import SieveState


def train_locally(
    model: DistributedDataParallel, config: SieveConfig | None = None, **options: Any
) -> OuterSync:
    """Stop a DDP model from averaging gradients, and return an `OuterSync` of its module.

    Each rank then trains by itself between the exchanges of the `OuterSync`.

    Args:
        model: the DDP model, before its first step and without a communication hook.
        config, options: those of `OuterSync`.

    Raises:
        SieveError: the model has a communication hook. Also what `OuterSync` raises.
    """
    require_no_hook(model)
    outer = OuterSync(model.module, config, process_group=model.process_group, **options)
    # DDP exchanges nothing from now on, as inside `no_sync()`. Frameworks may end that; the hook
    # then leaves each rank's gradients as they are.
    model.require_backward_grad_sync = False
    model.register_comm_hook(None, noop_hook)
    # DDP would copy the buffers of rank 0 to all ranks in every forward pass.
    model.broadcast_buffers = False
    return outer


def scalars_of(source: SieveState | OuterSync | None) -> dict[str, float]:
    """Return the numbers of the last record that trackers plot over steps, by name."""
    if isinstance(source, SieveState):
        return {} if source.last is None else source.last.scalars()
    if source is None or (record := source.last) is None:
        return {}
    return record.exchange.scalars() | {
        "outer/every": float(record.every),
        "outer/bits_per_parameter": record.bits_per_parameter,
        "outer/waited_seconds": record.waited_seconds,
        "outer/exposed_seconds": record.exposed_seconds,
    }


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
