"""What the exchange's work takes on this machine: measured by two ranks over loopback."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsieve.lab.link import UNSHAPED, open_link
from gradsieve.lab.plan.bare_step import BareStep, BucketSize
from gradsieve.lab.runs.order import ask_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Processor seconds of one thread."""

    select: float
    """An element: adding the residual, comparing, and clearing the bucket."""
    section: float
    """A parameter of a frame, made and read from two ranks, however little is sent."""
    make: float
    """A byte of a frame."""
    read: float
    """A byte of a frame, added to the average."""
    collective: float
    """A bucket: sizes told, frames sent, by all of the process's threads."""
    reduce: float
    """A byte of an all-reduce, by all of the process's threads."""
    halve: float
    """A float32 element cast to half precision and back."""


@dataclass(frozen=True, slots=True)
class MachineOrder:
    """What the ranks are to measure, beside the machine."""

    workloads: list[str]


@dataclass(frozen=True, slots=True)
class Measured:
    machine: Machine
    bare_steps: dict[str, BareStep]
    """Of each workload that was ordered."""


def measure(workloads: Sequence[str], directory: Path) -> Measured:
    """It takes half a minute, and some steps of each workload.

    Args:
        directory: for logs and the numbers.

    Raises:
        RunError: a rank failed.
    """
    with open_link(2, UNSHAPED) as loopback:
        order = MachineOrder([*workloads])
        found = ask_ranks("gradsieve.lab.plan.calibrate", order, directory, 2, loopback)
    return Measured(
        Machine(**found["machine"]),
        {name: bare_step_of(fields) for name, fields in found["bare_steps"].items()},
    )


def bare_step_of(fields: dict[str, Any]) -> BareStep:
    buckets = tuple(BucketSize(**bucket) for bucket in fields["buckets"])
    return BareStep(**fields | {"buckets": buckets})
