"""Checks that refuse what local steps cannot work with, in words that say what to do."""

from collections.abc import Set

from torch import nn

from gradsieve.bucket.requirements import require_unsharded
from gradsieve.config import SieveConfig
from gradsieve.errors import SieveError


def require_whole_module(model: object) -> None:
    """Raise TypeError unless `model` is a module whose parameters are whole on each rank."""
    found = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"OuterSync takes a torch.nn.Module, got {found}")
    require_unsharded(model, f"OuterSync takes a whole model, got {found}")


def require_same_parameters(model: nn.Module, known: Set[int]) -> None:
    """Raise SieveError if a parameter is trained that was frozen when OuterSync was made.

    Args:
        model: the model, without DDP.
        known: the ids of the parameters that were trained then.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise SieveError(
                f"parameter {name} is trained now and was frozen when OuterSync was made: the "
                "ranks would part. Call finish, and make a new OuterSync with it."
            )


def require_no_start(config: SieveConfig) -> None:
    """Raise ValueError if the sieve is to prune later than from the first exchange on."""
    for name in ("start_step", "ramp_steps"):
        if getattr(config, name):
            raise ValueError(
                f"OuterSync prunes from its first exchange on, without {name}: train with attach "
                "or plain DDP first, and make the OuterSync then"
            )
