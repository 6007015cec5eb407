"""Checks that refuse what local steps cannot work with, in words that say what to do."""

from collections.abc import Mapping

from torch import nn

from gradsieve.bucket.requirements import require_not_packed
from gradsieve.config import SieveConfig
from gradsieve.errors import SieveError
from gradsieve.topology import TOPOLOGIES, FrameTopology


def require_module(model: object) -> None:
    """Raise TypeError unless `model` is a module that is whole or sharded by `fully_shard`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"OuterSync takes a torch.nn.Module, got {type(model).__name__}")
    require_not_packed(model, f"OuterSync takes a whole model, got {type(model).__name__}")


def require_same_parameters(model: nn.Module, known: Mapping[int, str]) -> None:
    """Raise SieveError if a parameter is trained that OuterSync did not find when it was made.

    Args:
        model: the model, without DDP.
        known: the ids and names of the parameters that were trained then.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and known.get(id(parameter)) is None:
            if name in known.values():
                raise SieveError(
                    f"parameter {name} is another tensor than when OuterSync was made, which does "
                    "not know it: make OuterSync after whatever replaces parameters, and load "
                    "weights without assign=True"
                )
            raise SieveError(
                f"parameter {name} is trained now and was frozen when OuterSync was made: the "
                "ranks would diverge. Call finish, and make a new OuterSync with it."
            )


def require_no_start(config: SieveConfig) -> None:
    """Raise ValueError if the sieve is to prune later than from the first exchange on."""
    for name in ("start_step", "ramp_steps"):
        if getattr(config, name):
            raise ValueError(
                f"OuterSync prunes from its first exchange on, without {name}: train with attach "
                "or plain DDP first, and make the OuterSync then"
            )


def require_no_nodes(exchange: str) -> None:
    """Raise ValueError if ranks of a group that others manage are to exchange by nodes."""
    topology = TOPOLOGIES.get(exchange)
    if isinstance(topology, FrameTopology) and topology.of_nodes:
        raise ValueError(
            f"the ranks of a group that others manage form no nodes: exchange={exchange!r} cannot "
            'work there; give "gather", "two-shot", "dense" or "auto"'
        )
