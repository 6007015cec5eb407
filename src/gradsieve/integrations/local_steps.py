"""Local steps in a framework that wraps the model in DDP by itself."""

from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel

from gradsieve.config import SieveConfig
from gradsieve.hook import require_no_hook
from gradsieve.outer import OuterSync


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
    # As in a `no_sync()` without end. DDP would otherwise ask all ranks in each step which
    # parameters they have used, where it looks for unused ones.
    model.require_backward_grad_sync = False
    # Where a framework ends a `no_sync()` of its own, the hook leaves the gradients as they are.
    model.register_comm_hook(None, noop_hook)
    # DDP would copy the buffers of rank 0 to all ranks in every forward pass.
    model.broadcast_buffers = False
    return outer
