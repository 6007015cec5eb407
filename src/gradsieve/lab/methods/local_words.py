"""The options of local steps in one line of text: "every=10,delay=2,POLICY=NUMBER,OPTION=VALUE"."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gradsieve.config import SieveConfig, require_count, require_word
from gradsieve.lab.methods.sieve_words import WORDS, read_config
from gradsieve.outer.nesterov import LEARNING_RATE, MOMENTUM, RAMP, Nesterov, require_rates
from gradsieve.outer.schedule import USUAL, Schedule
from gradsieve.outer.weights import OuterOptimizer


@dataclass(frozen=True, slots=True)
class LocalSettings:
    every: int = USUAL
    delay: int = 0
    fragments: int = 1
    lr: float = LEARNING_RATE
    momentum: float = MOMENTUM
    ramp: float = RAMP
    """With `lr` and `momentum` the arguments of the outer optimizer, `Nesterov`."""
    start_step: int = 0
    """The number of synchronous steps before the local ones."""
    start: str = "dense"
    """What the synchronous steps send: "dense" sends all gradients, "sieve" prunes them alike."""
    residual_decay: float = 1.0
    """The factor that each exchange applies to the residual (SparseLoCo, arXiv 2508.15706)."""
    holds: bool = True
    """Whether a rank keeps in its weights what it has not sent, as `OuterSync` does."""
    sieve: SieveConfig = field(default_factory=SieveConfig)
    """The options of the sieve."""

    def __post_init__(self) -> None:
        Schedule(self.every, self.fragments, self.delay)
        require_count("start_step", self.start_step)
        require_rates(self.lr, self.momentum, self.ramp)
        if not 0 <= self.residual_decay <= 1:
            raise ValueError(f"residual_decay must be between 0 and 1, got {self.residual_decay}")
        if self.sieve.ramp_steps:
            raise ValueError("local steps have no ramp_steps; give start_step synchronous ones")

    @property
    def optimizer(self) -> OuterOptimizer:
        return partial(Nesterov, lr=self.lr, momentum=self.momentum, ramp=self.ramp)


def settings_of_peer(
    *, every: int, lr: float, momentum: float, start_step: int = 0
) -> LocalSettings:
    """Return the local steps of a peer, which brings its own compressor and has no ramp."""
    return LocalSettings(
        every=every,
        lr=lr,
        momentum=momentum,
        ramp=0,
        start_step=start_step,
        sieve=SieveConfig(exchange="dense"),
    )


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "every": int,
    "delay": int,
    "fragments": int,
    "holds": lambda word: WORDS[require_word("holds", word, tuple(WORDS))],
    "lr": float,
    "momentum": float,
    "ramp": float,
    "residual_decay": float,
    "start": lambda word: require_word("start", word, ("dense", "sieve")),
    "start_step": int,
}


def read_local_settings(text: str) -> LocalSettings:
    """Read the options of local steps, and all others as options of the sieve.

    Raises:
        ValueError: an option is unknown, or a value is out of range.
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
        sieve = read_config(",".join(others))
    except ValueError as error:
        raise ValueError(f"{error}; or one of {', '.join(OPTIONS)}") from error
    return LocalSettings(**own, sieve=sieve)
