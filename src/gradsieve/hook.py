"""The front end for DDP: `attach`, and the communication hook that it registers.

DDP calls the hook with each bucket of gradients and waits for the future that it returns.
"""

# DDP compares the annotations of the hook with types, so they must not become strings.
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from gradsieve.bucket.requirements import require_hookable
from gradsieve.config import Options, SieveConfig, config_from
from gradsieve.control.loss_scale import Scaler
from gradsieve.errors import SieveError
from gradsieve.runtime.torch_private import (
    GradBucket,
    comm_hooks,
    group_of_replicate,
    has_replicated,
)
from gradsieve.saved.copies import drop_copies, is_copy
from gradsieve.state import SieveState

if TYPE_CHECKING:
    from typing_extensions import Unpack


def attach(
    model: nn.Module,
    config: SieveConfig | None = None,
    *,
    scaler: Scaler | None = None,
    **options: "Unpack[Options]",
) -> SieveState:
    """Prune the gradients of a DDP model by thresholds before they are exchanged.

    Call it once, after DDP and before the first step, with the same options on every rank. The
    gradients may be float32, float16 or bfloat16, on any device. After ``loss.backward()`` each
    ``parameter.grad`` holds the average of what the ranks have sent, in its own shape and dtype.

    Args:
        model: the DDP model, or another module that takes the hooks of DDP, such as one of
            ``torch.distributed._composable.replicate``. It has no communication hook yet.
        config: the options; None takes the defaults of `SieveConfig`.
        scaler: the object that scales the loss, as in `SieveState`.
        options: fields of `SieveConfig` by name. They replace those of `config`.

    Returns:
        The state. It holds the record of each step, the residuals, and what to save in a
        checkpoint.

    Raises:
        TypeError: `model` takes no hook of DDP, an option does not exist, or an option has the
            wrong type.
        ValueError: an option has a value that is not allowed.
        SieveError: the model already has a communication hook, a trained parameter has sparse
            gradients or an unsupported dtype, or torch is older than 2.6.

    Example, in a process whose default process group is initialized:

        >>> import torch
        >>> import gradsieve as gs
        >>> from torch.nn.parallel import DistributedDataParallel as DDP
        >>> model = DDP(torch.nn.Linear(64, 64))
        >>> sieve = gs.attach(model, threshold=gs.Density(0.01), min_numel=64)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for step in range(3):
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> sieve.last.step, sieve.totals.steps
        (2, 3)
    """
    require_hookable(model)
    takes_hooks: Any = model
    require_no_hook(model)
    if has_replicated(model):
        raise SieveError(
            "the module of replicate has made its DDP model in a forward pass already, and takes "
            "no hook any more: attach right after replicate(model)"
        )
    config = config_from(attach, config, options)
    group = model.process_group if isinstance(model, DDP) else group_of_replicate(model)
    state = SieveState(config, scaler=scaler, process_group=group)
    state.bind(model)
    if isinstance(model, DDP):
        drop_copies(model)
    try:
        takes_hooks.register_comm_hook(state, sieve_hook)
    except RuntimeError as error:
        raise SieveError(f"DDP did not take the hook: {error}") from error
    return state


def require_no_hook(model: object) -> None:
    hooks = [entry for entry in comm_hooks(model) if not is_copy(entry[1])]
    if hooks:
        name = getattr(hooks[0][0], "__name__", repr(hooks[0][0]))
        raise SieveError(
            f"the model has the communication hook {name} already, and DDP takes one; attach "
            "gradsieve once, and no other hook beside it"
        )


def sieve_hook(state: SieveState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Replace a bucket of gradients by the average of the ranks' survivors.

    This is the DDP communication hook that `attach` registers. Use it directly only with a tool
    that takes a state and a hook, as `SieveState` shows.

    Args:
        state: the state of the model's sieve.
        bucket: the bucket, as DDP gives it to hooks.

    Returns:
        A future of the bucket's flat buffer, in its own dtype, with the average in it.

    Raises:
        SieveError: on every rank, where the ranks differ or the bucket cannot be handled.
        ExchangeError: on the last bucket of a step, where a rank has died or stalled.
    """
    if bucket.index() == 0:
        state.begin_step(bucket)
    state.engine.follow_layout(bucket)
    future = state.engine.exchange(bucket)
    if bucket.is_last():
        state.end_step()
    return future
