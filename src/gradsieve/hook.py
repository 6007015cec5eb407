"""Between DDP and the sieve: takes the buckets over, gives futures of averages."""

# DDP compares the hook's annotations with the types themselves: they must not become strings.
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.requirements import require_ddp
from gradsieve.config import Options, SieveConfig, config_from
from gradsieve.control.loss_scale import Scaler
from gradsieve.errors import SieveError
from gradsieve.runtime.torch_private import GradBucket, comm_hooks
from gradsieve.saved.copies import drop_copies, is_copy
from gradsieve.state import SieveState

if TYPE_CHECKING:
    from typing_extensions import Unpack


def attach(
    model: DistributedDataParallel,
    config: SieveConfig | None = None,
    *,
    scaler: Scaler | None = None,
    **options: "Unpack[Options]",
) -> SieveState:
    """Put the sieve between the gradients of a DDP model and the network.

    Call it once, after DDP and before the first step, in the same way on every rank::

        model = DDP(net)
        sieve = gs.attach(model, threshold=gs.Sigma(2))

    Args:
        config: the options, a `SieveConfig`.
        scaler: what scales the loss, as in `SieveState`.
        options: the fields of `SieveConfig`, in place of those of `config`.

    Returns:
        The state: records of each step, residuals, what to save in a checkpoint.

    Raises:
        TypeError: `model` is not a DistributedDataParallel, or an option does not exist or is of
            another type.
        ValueError: an option has a value that it cannot have.
        SieveError: the model has a communication hook already, a parameter that is trained has
            sparse gradients or a dtype that the sieve does not take, or torch is too old.
    """
    require_ddp(model)
    require_no_hook(model)
    config = config_from(attach, config, options)
    state = SieveState(config, scaler=scaler, process_group=model.process_group)
    state.bind(model)
    drop_copies(model)
    try:
        model.register_comm_hook(state, sieve_hook)
    except RuntimeError as error:
        raise SieveError(f"DDP did not take the hook: {error}") from error
    return state


def require_no_hook(model: nn.Module) -> None:
    hooks = [entry for entry in comm_hooks(model) if not is_copy(entry[1])]
    if hooks:
        name = getattr(hooks[0][0], "__name__", repr(hooks[0][0]))
        raise SieveError(
            f"the model has the communication hook {name} already, and DDP takes one; attach "
            "gradsieve once, and no other hook beside it"
        )


def sieve_hook(state: SieveState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DDP communication hook: replace a bucket of gradients by the average of the ranks' survivors.

    For tools that register a state and a hook themselves; others call `attach`.
    """
    if bucket.index() == 0:
        state.begin_step(bucket)
    state.engine.follow_layout(bucket)
    future = state.engine.exchange(bucket)
    if bucket.is_last():
        state.end_step()
    return future
