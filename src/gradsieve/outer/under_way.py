"""The exchange that is under way, from its beginning to its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradsieve.outer.buffers import BufferAverage
from gradsieve.outer.weights import Flight, OuterWeights
from gradsieve.telemetry import StepRecord


@dataclass(slots=True)
class UnderWay:
    """A flight between ranks."""

    flight: Flight
    every: int = 1
    since: int = 1
    """Inner steps of the phase, and since the exchange before."""
    futures: list[torch.futures.Future[Tensor]] = field(default_factory=list)
    """Of the buckets: a device's readers wait for its work."""
    buffer_average: BufferAverage | None = None
    """Of the model's statistics; None where they are not exchanged, or have arrived."""
    buffers: list[Tensor] = field(default_factory=list)
    """Their averages, when they have arrived."""
    has_arrived: bool = False
    """The buckets hold averages."""
    exchange: StepRecord | None = None
    """Of one that has arrived; None where it was loaded."""
    seconds: float = 0.0
    """That it took of training so far."""

    def wait(self) -> None:
        """For what a step of the sieve, which has ended, does not wait for; raises as
        `BufferAverage.wait`."""
        for future in self.futures:
            future.wait()
        if self.buffer_average is not None:
            self.buffers = self.buffer_average.wait()
            self.buffer_average = None

    def save(self) -> dict[str, object]:
        """Of one that has arrived."""
        return {
            "fragment": self.flight.fragment,
            "averages": [bucket.flat.clone() for bucket in self.flight.buckets],
            "departed": [weights.clone() for weights in self.flight.departed],
            "buffers": [average.clone() for average in self.buffers],
            "every": self.every,
            "since": self.since,
        }


def load_under_way(
    weights: OuterWeights, buffers: Sequence[Tensor], saved: Mapping[str, Any]
) -> UnderWay:
    """One that has arrived, as it was saved.

    Args:
        buffers: those that are averaged, on their devices.
    """
    devices = {buffer.device: None for buffer in buffers} if saved["buffers"] else {}
    flight = weights.begin(saved["fragment"], goes_on=True)
    for bucket, average in zip(flight.buckets, saved["averages"], strict=True):
        bucket.flat.copy_(average)
    for mine, departed in zip(flight.departed, saved["departed"], strict=True):
        mine.copy_(departed)
    return UnderWay(
        flight,
        every=saved["every"],
        since=saved["since"],
        buffers=[
            average.to(device) for average, device in zip(saved["buffers"], devices, strict=True)
        ],
        has_arrived=True,
    )
