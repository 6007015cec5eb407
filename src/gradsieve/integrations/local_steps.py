"""Local steps in a framework that wraps the model in DDP by itself."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel

from gradsieve.config import SieveConfig
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


class Stateful(Protocol):
    """An optimizer or a ``GradScaler``."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class LocalState:
    """What a rank must save to resume local steps exactly: all of it differs between ranks.

    `gradsieve.checkpoint.save` and `load` take it.

    Args:
        outer: the `OuterSync`.
        model: the module that it averages.
        optimizers: the inner optimizers.
        scaler: the object that scales this rank's loss.
    """

    def __init__(
        self,
        outer: OuterSync,
        model: nn.Module,
        optimizers: Sequence[Stateful],
        scaler: Stateful | None = None,
    ) -> None:
        self.outer, self.model, self.optimizers, self.scaler = outer, model, optimizers, scaler

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
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
        # A module may leave out what is frozen. The OuterSync compares all that is trained.
        self.model.load_state_dict(state["model"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.outer.load_state_dict(state["outer"])


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
