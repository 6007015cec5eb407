"""The options of a sieve.

They are defined and checked here once. `attach`, `SieveState` and `OuterSync` take them from here,
and so does the check that all ranks agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from operator import index
from typing import Any, TypedDict, get_args

from gradsieve.codec import VALUES, Values
from gradsieve.control.budget import Budget
from gradsieve.control.thresholds import Measured, Threshold
from gradsieve.exchange.topology_names import Exchange


@dataclass(frozen=True, kw_only=True)
class SieveConfig:
    """The options of a sieve.

    All ranks must have the same options; only `node_size` may differ. `attach`, `SieveState` and
    `OuterSync` take a config, or the options by name, or both: an option given by name replaces
    that of the config.

    A gradient element survives if the magnitude of gradient + residual exceeds the threshold. The
    survivors are sent. The rest stays on the rank in the residual, which is added to the next
    gradient (error feedback).

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has a value that is not listed, or a number is out of range.

    Example:

        >>> import gradsieve as gs
        >>> config = gs.SieveConfig(threshold=gs.Sigma(2), values="bfloat16")
        >>> config.topology_name, config.rotation, config.error_feedback
        ('gather', 0, True)
        >>> gs.SieveConfig(values="float64")
        Traceback (most recent call last):
            ...
        ValueError: values must be one of levels, float32, bfloat16, got 'float64'
    """

    threshold: Threshold | None = None
    """The policy that sets the threshold of each parameter: `Budget`, `Sigma`, `UnsentMean`,
    `Density` or `Fixed`. None: ``Budget("auto")``, which sends as much as the backward pass
    hides."""

    values: Values = "levels"
    """The coding of the survivors. "levels": quantized to a few magnitudes (levels), the lowest of
    which is at the threshold. "bfloat16": rounded. "float32": exact. The rounding error stays in
    the residual. Parameters that travel whole are sent as float32 with "float32" and as bfloat16
    with "bfloat16". With "levels" they are rounded to powers of two, or to bfloat16 where there is
    no error feedback."""

    exchange: Exchange | None = None
    """The topology of the exchange. None: "auto" with a `Budget`, else "gather".

    - "auto": the fastest topology on this link, chosen again as training goes on.
    - "gather": every rank sends its frame to all others. Traffic grows with the world size.
    - "two-shot": each rank adds up one part of the model, prunes the sum and sends it to all
      others. Traffic does not grow with the world size; latency doubles.
    - "hierarchical": the ranks of a node first add up their gradients. Then each rank sends one
      part of the model to the other nodes.
    - "dense": a plain all-reduce.
    - "dense-fp16": an all-reduce in float16. The rounding error is lost.
    """

    node_size: int | None = None
    """Number of consecutive ranks that share a machine. None: the ``LOCAL_WORLD_SIZE`` that the
    launcher has set."""

    rotation: int = 0
    """Largest block size (rows and columns) of the rotation; 0 for none. With a rotation, the
    sieve prunes the coefficients of matrices in bases that follow the gradients, because a few
    coefficients carry most of a gradient. Blocks of 256 cost some 1,000 operations per element
    and step, as much as training on 170 rows of input. They pay off where the link carries less
    than one bit per element."""

    error_feedback: bool = True
    """Whether the residual keeps what is pruned and adds it to the next gradient. False drops
    it."""

    min_numel: int | None = None
    """Number of elements below which a parameter (a bias, a norm) travels whole. None: 2,048, or
    less (down to 256) where such parameters hold more than a twentieth of all elements."""

    start_step: int = 0
    """The first step that prunes. The steps before it are plain all-reduces."""

    ramp_steps: int = 0
    """Number of steps, from `start_step` on, over which the threshold rises from 0 to the value of
    the policy."""

    def __post_init__(self) -> None:
        if self.threshold is None:
            object.__setattr__(self, "threshold", Budget("auto"))
        require_policy(self.threshold)
        require_word("values", self.values, VALUES)
        require_word("exchange", self.topology_name, get_args(Exchange))
        if not isinstance(self.error_feedback, bool):
            raise TypeError(f"error_feedback must be True or False, got {self.error_feedback!r}")
        for name in ("rotation", "start_step", "ramp_steps"):
            require_count(name, getattr(self, name))
        if self.min_numel is not None:
            require_count("min_numel", self.min_numel)
        if self.node_size is not None:
            require_count("node_size", self.node_size, least=1)

    @property
    def policy(self) -> Threshold:
        """The threshold policy: `threshold`, or the default where that was None."""
        assert self.threshold is not None
        return self.threshold

    @property
    def topology_name(self) -> Exchange:
        """The name of the topology, or "auto": `exchange`, or the default where that is None."""
        return default_exchange(self.policy) if self.exchange is None else self.exchange

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each option that must be the same on all ranks, such as ``rotation=0``."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        values["exchange"] = self.topology_name
        return tuple(f"{name}={value}" for name, value in values.items() if name != "node_size")


class Options(TypedDict, total=False):
    """The fields of `SieveConfig`, as keyword arguments for type checkers."""

    threshold: Threshold | None
    values: Values
    exchange: Exchange | None
    node_size: int | None
    rotation: int
    error_feedback: bool
    min_numel: int | None
    start_step: int
    ramp_steps: int


OPTIONS = tuple(option.name for option in fields(SieveConfig))
assert tuple(Options.__annotations__) == OPTIONS


def config_from(
    caller: Callable[..., object], config: SieveConfig | None, options: Options
) -> SieveConfig:
    """Return `config`, or the default one, with some options replaced.

    Args:
        caller: the function that was given them, for the error messages.

    Raises:
        TypeError: `config` is no SieveConfig, an option does not exist, or an option has the wrong
            type.
        ValueError: an option has a value that is not allowed.
    """
    name = caller.__qualname__.removesuffix(".__init__")
    if config is not None and not isinstance(config, SieveConfig):
        hint = f"; write threshold={config!r}" if hasattr(config, "measured") else ""
        raise TypeError(f"{name}: config must be a SieveConfig, got {config!r}{hint}")
    for option in options:
        if option not in OPTIONS:
            close = get_close_matches(option, OPTIONS, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it takes {', '.join(OPTIONS)}"
            raise TypeError(f"{name} has no option {option!r}{hint}")
    return SieveConfig(**options) if config is None else replace(config, **options)


def default_exchange(policy: Threshold) -> Exchange:
    """Return the topology of a config that names none."""
    return "auto" if isinstance(policy, Budget) else "gather"


def require_policy(threshold: object) -> None:
    """Raise TypeError if `threshold` is no policy."""
    if isinstance(threshold, type) or not hasattr(threshold, "measured"):
        raise TypeError(
            "the threshold must be a policy such as gradsieve.Density(0.01) or "
            f"gradsieve.Fixed(0.1), got {threshold!r}"
        )
    require_word(f"measured of {threshold!r}", threshold.measured, get_args(Measured))
    if not callable(getattr(threshold, "next", None)):
        raise TypeError(f"the threshold {threshold!r} has no method next(moments, threshold)")


def require_word(name: str, word: Any, known: tuple[str, ...]) -> str:
    """Return `word`. Raise TypeError if it is no text, ValueError if it is not a known one."""
    if isinstance(word, str) and word in known:
        return word
    error = ValueError if isinstance(word, str) else TypeError
    raise error(f"{name} must be one of {', '.join(known)}, got {word!r}")


def require_count(name: str, count: Any, least: int = 0) -> None:
    """Raise TypeError if `count` is no whole number, ValueError if it is below `least`."""
    try:
        if isinstance(count, bool):
            raise TypeError
        index(count)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {count!r}") from None
    if count < least:
        raise ValueError(f"{name} must be {least} or more, got {count}")
