"""Local steps in one line of text: "every=10,delay=2,POLICY=NUMBER,OPTION=VALUE"."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.optim import SGD

from gradsieve.lab.methods.sieve_words import read_settings
from gradsieve.outer.schedule import Schedule
from gradsieve.outer.weights import LEARNING_RATE, MOMENTUM, OuterOptimizer
from gradsieve.requirements import require_counts, require_word


@dataclass(frozen=True, slots=True)
class LocalSettings:
    every: int = 10
    delay: int = 0
    fragments: int = 1
    lr: float = LEARNING_RATE
    """Of the outer optimizer, SGD."""
    momentum: float = MOMENTUM
    """Nesterov's; 0: none."""
    start_step: int = 0
    """Synchronous steps before."""
    start: str = "dense"
    """What they send: "dense", all gradients; "sieve", what the same sieve lets pass of them."""
    residual_decay: float = 1.0
    """What an exchange leaves of the residual (SparseLoCo, arXiv 2508.15706)."""
    sieve: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of `OuterSync`."""

    def __post_init__(self) -> None:
        Schedule(self.every, self.fragments, self.delay)
        require_counts(start_step=self.start_step)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if not 0 <= self.residual_decay <= 1:
            raise ValueError(f"residual_decay must be between 0 and 1, got {self.residual_decay}")
        if "ramp_steps" in self.sieve:
            raise ValueError("local steps have no ramp_steps; give start_step synchronous ones")

    @property
    def optimizer(self) -> OuterOptimizer:
        return partial(SGD, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "every": int,
    "delay": int,
    "fragments": int,
    "lr": float,
    "momentum": float,
    "residual_decay": float,
    "start": lambda word: require_word("start", word, ("dense", "sieve")),
    "start_step": int,
}


def read_local_settings(text: str) -> LocalSettings:
    """What is no setting of local steps is one of the sieve, as `read_settings` takes it.

    Raises:
        ValueError: it is written otherwise, or a number is out of range.
    """
    own: dict[str, Any] = {}
    others = []
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if equals and name in OPTIONS:
            own[name] = OPTIONS[name](value)
        else:
            others.append(part)
    try:
        sieve = read_settings(",".join(others))
    except ValueError as error:
        raise ValueError(f"{error}; or one of {', '.join(OPTIONS)}") from error
    return LocalSettings(**own, sieve=sieve)
