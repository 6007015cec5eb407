"""The time that an exchange's work takes on this machine, measured by two ranks over loopback."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsieve.lab.link import UNSHAPED, open_link
from gradsieve.lab.plan.bare_step import BareStep, BucketSize
from gradsieve.lab.runs.order import ask_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Processor seconds of one thread, for each unit of work."""

    select: float
    """Adding the residual to an element, comparing it, and clearing the bucket."""
    section: float
    """Making a section of a frame and reading it from two ranks, however little is sent."""
    make: float
    """Making a byte of a frame."""
    read: float
    """Reading a byte of a frame and adding it to the average."""
    collective: float
    """Telling sizes and sending frames for a bucket, on all threads of the process."""
    reduce: float
    """A byte of an all-reduce, on all threads of the process."""
    halve: float
    """Casting a float32 element to half precision and back."""


@dataclass(frozen=True, slots=True)
class MachineOrder:
    """What the ranks measure beside the machine."""

    workloads: list[str]


@dataclass(frozen=True, slots=True)
class Measured:
    machine: Machine
    bare_steps: dict[str, BareStep]
    """The step of each workload that was asked for."""


def measure(workloads: Sequence[str], directory: Path) -> Measured:
    """Measure this machine for half a minute, and some steps of each workload.

    Args:
        directory: where logs and the numbers are written.

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
