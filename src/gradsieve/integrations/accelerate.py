"""gradsieve in Accelerate: checkpoints of the accelerator keep what each rank has not sent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from gradsieve import checkpoint, hook
from gradsieve.config import SieveConfig
from gradsieve.gathering import HasState
from gradsieve.integrations.ddp_models import ddp_model
from gradsieve.integrations.local_state import LocalState, require_kind
from gradsieve.integrations.local_steps import train_locally
from gradsieve.outer import OuterSync
from gradsieve.state import SieveState

ADVICE = "what accelerator.prepare returns to several ranks: accelerate launch, on CPUs torchrun"
_kept: "WeakKeyDictionary[Accelerator, int]" = WeakKeyDictionary()
"""The number of the last state in the checkpoints of each accelerator, from 0."""


def attach(
    accelerator: Accelerator, model: nn.Module, config: SieveConfig | None = None, **options: Any
) -> SieveState:
    """Prune the gradients of a model that ``accelerator.prepare`` has returned.

    Call it once on every rank, before the first step and before ``load_state``. Then
    ``accelerator.save_state`` and ``load_state`` save and load every rank's own state.

    Args:
        accelerator: if it has a scaler, the sieve is given it.
        config, options: those of `gradsieve.attach`.

    Raises:
        SieveError: the prepared model is not a DDP model. Also what `gradsieve.attach` raises.
    """
    ddp = ddp_model(model, "Accelerate", ADVICE)
    state = hook.attach(ddp, config, scaler=accelerator.scaler, **options)
    OwnFiles(accelerator, state)
    return state


def local_steps(
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer],
    config: SieveConfig | None = None,
    **options: Any,
) -> OuterSync:
    """Let each rank train a prepared model by itself between exchanges.

    After ``optimizer.step()``, call ``outer.step()`` if ``accelerator.sync_gradients`` is true.
    ``accelerator.save_state`` and ``load_state`` save and load every rank's own weights, optimizers
    and `OuterSync`.

    Args:
        optimizers: the prepared optimizer, or all of them.
        config, options: those of `OuterSync`, such as ``every=10``.

    Raises:
        SieveError: the prepared model is not a DDP model. Also what `OuterSync` raises.
    """
    ddp = ddp_model(model, "Accelerate", ADVICE)
    outer = train_locally(ddp, config, **options)
    all_of_them = [optimizers] if isinstance(optimizers, Optimizer) else [*optimizers]
    OwnFiles(accelerator, LocalState(outer, all_of_them, ddp.module, accelerator.scaler))
    return outer


class OwnFiles:
    """A file of each rank in the folder to which the accelerator saves its own state.

    Accelerate tells the folder to hooks only, and loads registered objects last, when the weights
    are there. This is both.
    """

    def __init__(self, accelerator: Accelerator, own: HasState) -> None:
        number = _kept[accelerator] = _kept.get(accelerator, -1) + 1
        self._own, self._name, self._folder = own, f"gradsieve_{number}", Path()
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._find)
        accelerator.register_for_checkpointing(self)

    def _save(self, models: Any, weights: Any, folder: str) -> None:
        checkpoint.save(self._own, Path(folder, self._name))

    def _find(self, models: Any, folder: str) -> None:
        self._folder = Path(folder, self._name)

    def state_dict(self) -> dict[str, Any]:
        return {"outer": self._name} if isinstance(self._own, LocalState) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_kind(state, local=isinstance(self._own, LocalState))
        checkpoint.load(self._own, self._folder)
