"""Save what local steps keep on a rank, and load it again."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from gradsieve.bucket.shards import places_of
from gradsieve.outer.exchange import OuterExchange
from gradsieve.outer.under_way import load_under_way
from gradsieve.outer.weights import OuterWeights, require_optimizer_fits
from gradsieve.parameters.saving import load_inherited, save_inherited
from gradsieve.saved.outer import VERSION, require_sound_outer
from gradsieve.saved.seal import crc_of, sealed
from gradsieve.saved.sieve import (
    lines_of,
    require_own_place,
    require_own_shards,
    require_settings,
    require_weights,
)

MODEL_FIRST = "make OuterSync first, then load the model, then this state"


def save(exchange: OuterExchange) -> dict[str, Any]:
    """Return the state of a rank. An exchange that is under way must have arrived."""
    weights, under_way = exchange.weights, exchange.under_way
    rank, world_size = exchange.state.engine.groups.own_place
    return sealed(
        {
            "version": VERSION,
            "rank": rank,
            "world_size": world_size,
            "settings": settings_of(exchange),
            "schedule": exchange.schedule.save(),
            "names": list(weights.names),
            "weights": {name: w.detach().clone() for name, w in weights.named},
            "holding": (weights.holding,),
            "model": (checksums_of(weights),),
            "optimizer": (deepcopy(weights.optimizer.state_dict()),),
            "sieve": exchange.state.save(),
            "inherited": (inherited_of(exchange),),
            "under_way": (None if under_way is None else under_way.save(),),
        }
    )


def load(exchange: OuterExchange, state: Mapping[str, Any]) -> None:
    """Restore what `save` has returned. A state that is refused changes nothing.

    Raises:
        ValueError: see `OuterSync.load_state_dict`.
    """
    weights, settings = exchange.weights, settings_of(exchange)
    found = require_sound_outer(state)
    require_own_shards(found["settings"], settings)
    require_own_place(found["rank"], found["world_size"], *exchange.state.engine.groups.own_place)
    theirs = [*found["settings"], *found["sieve"]["settings"]]
    require_settings(theirs, [*settings, *lines_of(exchange.state.sieve.settings)])
    exchange.schedule.require_fit(found["schedule"])
    names = weights.require_fit(found["names"], found["weights"])
    names_there = {other: name for name, other in names.items()}
    model = {name: found["model"][0][other] for name, other in names.items()}
    require_weights(model, checksums_of(weights), MODEL_FIRST)
    (optimizer,), (saved,) = found["optimizer"], found["under_way"]
    require_optimizer_fits(weights.optimizer, optimizer)
    outer = {name: found["weights"][other] for name, other in names.items()}
    under_way = None
    if saved is not None:
        under_way = load_under_way(weights, exchange.buffers.now(), saved)
    # Everything is checked. From here on nothing is refused.
    exchange.state.load(found["sieve"], {name: crc_of(w) for name, w in outer.items()})
    with torch.no_grad():
        for name, mine in weights.named:
            mine.copy_(outer[name])
    (inherited,) = found["inherited"]
    for name, kept in exchange.state.sieve.parameters.states.items():
        load_inherited(kept, inherited.get(names[name]))
    holding = [names_there[name] for name in found["holding"][0]]
    for place, name in enumerate(weights.names):
        weights.hold(place, exchange.unsent(name) if name in holding else None)
    # torch keeps the tensors that it is given, and steps on them.
    weights.optimizer.load_state_dict(deepcopy(optimizer))
    exchange.schedule.load(found["schedule"])
    exchange.records, exchange.under_way = [], under_way
    exchange.in_residuals = None


def inherited_of(exchange: OuterExchange) -> dict[str, Tensor]:
    """Return what each parameter has inherited, if anything. No bases may be turning."""
    saved = {kept.name: save_inherited(kept) for kept in exchange.state.sieve.parameters}
    return {name: inherited for name, inherited in saved.items() if inherited is not None}


def checksums_of(weights: OuterWeights) -> dict[str, int]:
    """Return the checksums of this rank's own weights."""
    shards = zip(weights.names, weights.shards(), strict=True)
    return {name: crc_of(shard) for name, shard in shards}


def settings_of(exchange: OuterExchange) -> list[str]:
    """Return the settings of a saved state, beside those of the sieve."""
    places = places_of(exchange.weights.inner)
    return [
        *exchange.schedule.settings,
        f"optimizer={type(exchange.weights.optimizer).__name__}",
        *([f"shards={places}"] if places else []),
    ]
