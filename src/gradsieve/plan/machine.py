"""What the exchange's work takes on this machine: measured by two ranks over loopback."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gradsieve.link import open_link
from gradsieve.plan.training import BucketSize, Training
from gradsieve.runs.launch import run_ranks


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
class Order:
    """What the ranks are to measure, and where they write it."""

    workloads: list[str]
    result: str


@dataclass(frozen=True, slots=True)
class Measured:
    machine: Machine
    trainings: dict[str, Training]
    """Of each workload that was ordered."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def measure(workloads: Sequence[str], directory: Path) -> Measured:
    """It takes half a minute, and some steps of each workload.

    Args:
        directory: for logs and the numbers.

    Raises:
        RunError: a rank failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, result = directory / "order.json", directory / "measured.json"
    path.write_text(json.dumps(asdict(Order([*workloads], str(result)))))
    with open_link(2, None) as loopback:
        run_ranks("gradsieve.plan.calibrate", path, 2, loopback)
    return read_measured(result)


def read_order(path: Path) -> Order:
    return Order(**json.loads(path.read_text()))


def read_measured(path: Path) -> Measured:
    written = json.loads(path.read_text())
    return Measured(
        Machine(**written["machine"]),
        {name: training_of(fields) for name, fields in written["trainings"].items()},
    )


def training_of(fields: dict[str, object]) -> Training:
    buckets = fields.pop("buckets")
    assert isinstance(buckets, list)
    return Training(**fields, buckets=tuple(BucketSize(**b) for b in buckets))  # type: ignore[arg-type]
