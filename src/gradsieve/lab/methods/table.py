"""The table of all methods, and how a line of text names one."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from gradsieve.lab.methods.apart import Alone, LockStep
from gradsieve.lab.methods.demo import Demo
from gradsieve.lab.methods.dense import Ddp, Dense, EightBit, Fp16
from gradsieve.lab.methods.fsdp import FsdpAlone, FsdpSieve, Hsdp
from gradsieve.lab.methods.local import Local
from gradsieve.lab.methods.method import Distributed, Method, Played
from gradsieve.lab.methods.muloco import Muloco
from gradsieve.lab.methods.played.synchronous import PlayedTraining
from gradsieve.lab.methods.post_local import PostLocal
from gradsieve.lab.methods.powersgd import PowerSgd
from gradsieve.lab.methods.sieve import Sieve
from gradsieve.lab.methods.sparseloco import SparseLoco
from gradsieve.lab.methods.topk import TopK
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import Workload

# A method that real ranks can use derives from Distributed, one that can be played from Played.
METHODS: tuple[type[Method], ...] = (
    Ddp,
    Dense,
    Fp16,
    EightBit,
    PowerSgd,
    TopK,
    LockStep,
    Alone,
    Sieve,
    Local,
    PostLocal,
    SparseLoco,
    Muloco,
    Demo,
    Hsdp,
    FsdpSieve,
    FsdpAlone,
)
AnyMethod = TypeVar("AnyMethod", bound=Method)


def by_name(methods: Iterable[type[AnyMethod]]) -> dict[str, type[AnyMethod]]:
    return {method.form.partition(":")[0].removesuffix("["): method for method in methods}


NAMED = by_name(METHODS)
DISTRIBUTED = by_name(method for method in METHODS if issubclass(method, Distributed))
PLAYED = by_name(method for method in METHODS if issubclass(method, Played))


def read_method(text: str) -> Method:
    """Return the method that `text` names, "powersgd:4".

    Raises:
        ValueError: no method is written like this; the message names those that are.
    """
    return read(text, NAMED)


def read_distributed(text: str) -> Distributed:
    """Return the method that `text` names, for real ranks. Raises as `read_method`."""
    method = read(text, DISTRIBUTED)
    try:
        method.require_possible()
    except ValueError as error:
        raise no_method(text, error) from error
    return method


def read(text: str, methods: Mapping[str, type[AnyMethod]]) -> AnyMethod:
    name, *options = text.split(":")
    method = methods.get(name)
    if method is None or len(options) > (":" in method.form):
        forms = ", ".join(method.form for method in methods.values())
        raise ValueError(f"{text!r} is no method; write one of {forms}")
    try:
        return method(*options)
    except ValueError as error:
        raise no_method(text, error) from error


def no_method(text: str, error: ValueError) -> ValueError:
    return ValueError(f"{text!r} is no method: {error}")


def play_method(text: str, replica: Replica, ranks: int) -> PlayedTraining:
    """Return the training of ranks that begin as `replica`, played in this process.

    Raises:
        ValueError: no method that can be played is written like this, or not for this model.
    """
    method = read(text, PLAYED)
    try:
        return method.play(replica, ranks)
    except ValueError as error:
        raise no_method(text, error) from error


def require_playable(text: str, workload: Workload) -> None:
    """Raise ValueError where `text` names no method that can be played with this workload."""
    replica = Replica(workload, workload.make_model(), workload.learning_rate, steps=1)
    play_method(text, replica, ranks=1)


def trains_together(text: str) -> bool:
    """Return whether the ranks of a run had a common model in the end, as with unknown methods."""
    method = NAMED.get(text.partition(":")[0])
    return method is None or method.trains_together
