"""The training runs that are recorded: each in a few steps, through the public interface only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import gradsieve as gs

BLOCK = 16
"""The largest block of a rotation."""


@dataclass(frozen=True)
class Case:
    name: str
    settings: Mapping[str, Any]
    """Arguments of `attach`, or of `OuterSync`."""
    ranks: int = 2
    steps: int = 7
    is_local: bool = False
    """Local steps, through `OuterSync`."""
    is_scaled: bool = False
    """A scaler multiplies the loss; one step is not finite and is skipped."""
    is_partly_unused: bool = False
    """In some steps a parameter is used on one rank only, or on none."""
    is_by_hand: bool = False
    """A state that knows no names is registered with the hook, without `attach`."""
    is_kept: bool = False
    """A part of the record is in the repository, and a test compares with it."""

    @property
    def has_frames(self) -> bool:
        return not self.settings["exchange"].startswith("dense")


def half(parameters):
    """An outer optimizer whose products are exact: fused with a sum or not, they are the same."""
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.5, nesterov=True)


def on(exchange, **settings):
    """Settings of an exchange, and the ranks that it is played on."""
    settings = {"exchange": exchange, "threshold": gs.Density(0.05), "min_numel": 2048} | settings
    if exchange == "hierarchical":
        return {"ranks": 4, "settings": settings | {"node_size": 2}}
    return {"ranks": 2, "settings": settings}


def lock_step():
    kept = {("gather", 0), ("two-shot", BLOCK), ("hierarchical", BLOCK)}
    for exchange in ("gather", "two-shot", "hierarchical"):
        for rotation in (0, BLOCK):
            name = f"{exchange}, levels, rotation {rotation}"
            play = on(exchange, rotation=rotation)
            yield Case(name, **play, is_kept=(exchange, rotation) in kept)
        for values in ("bfloat16", "float32"):
            yield Case(f"{exchange}, {values}", **on(exchange, values=values))
        forgetful = on(exchange, error_feedback=False, threshold=gs.Sigma(1.0))
        yield Case(f"{exchange}, no error feedback", **forgetful)
    for exchange in ("dense", "dense-fp16"):
        yield Case(exchange, **on(exchange))


def policies():
    yield Case("fixed", **on("gather", threshold=gs.Fixed(0.25)))
    yield Case("sigma of gradients", **on("gather", threshold=gs.Sigma(1.5)))
    accumulated = gs.Sigma(1.5, of="accumulated")
    yield Case("sigma of accumulated gradients", **on("two-shot", threshold=accumulated))
    balanced = gs.Sigma(1.5, of="balanced")
    yield Case("balanced sigma", **on("two-shot", threshold=balanced), is_kept=True)
    yield Case("balanced sigma on nodes", **on("hierarchical", threshold=balanced))
    yield Case("unsent mean", **on("gather", threshold=gs.UnsentMean(4.0)))


def situations():
    late = {"start_step": 2, "ramp_steps": 3, "rotation": BLOCK}
    yield Case("late and in a ramp", **on("two-shot", **late), steps=9, is_kept=True)
    for exchange in ("gather", "hierarchical"):
        name, play = f"scaled loss, {exchange}", on(exchange, rotation=BLOCK)
        yield Case(name, **play, is_scaled=True, is_kept=exchange == "gather")
    for exchange in ("gather", "two-shot"):
        yield Case(f"unused parameters, {exchange}", **on(exchange), is_partly_unused=True)
    yield Case("registered by hand", **on("gather", rotation=BLOCK), is_by_hand=True)


def local_steps():
    local: dict[str, Any] = {"is_local": True, "steps": 9}
    short = {"every": 3, "optimizer": half}
    for exchange in ("gather", "two-shot", "hierarchical"):
        for rotation in (0, BLOCK):
            name = f"local, {exchange}, rotation {rotation}"
            play = on(exchange, rotation=rotation, **short)
            kept = (exchange, rotation) == ("gather", BLOCK)
            yield Case(name, **play, **local, is_kept=kept)
    for exchange in ("dense", "dense-fp16"):
        yield Case(f"local, {exchange}", **on(exchange, **short), **local)
    overlapping = {"every": 4, "fragments": 2, "delay": 1, "optimizer": half, "rotation": BLOCK}
    yield Case("local, delayed fragments", **on("two-shot", **overlapping), **local, is_kept=True)
    forgetful = on("two-shot", error_feedback=False, **short)
    yield Case("local, no error feedback", **forgetful, **local)
    # Its products are not exact: this one is the same only on processors that fuse them with sums.
    yield Case("local, default optimizer", **on("gather", every=3), **local)


CASES = {
    case.name: case for cases in (lock_step, policies, situations, local_steps) for case in cases()
}
