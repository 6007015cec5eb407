"""Local steps in a framework that wraps the model in DDP by itself."""

from typing import Any

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
