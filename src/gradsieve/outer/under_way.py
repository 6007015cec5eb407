"""The exchange that is under way, from its beginning to its end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradsieve.outer.buffers import BufferAverage
from gradsieve.outer.weights import Flight, OuterWeights


@dataclass(slots=True)
class UnderWay:
    flight: Flight
    buffer_average: BufferAverage | None = None
    """Of the model's statistics; None where they are not exchanged, or have arrived."""
    buffers: list[Tensor] = field(default_factory=list)
    """Their averages, when they have arrived."""
    has_arrived: bool = False
    """The buckets hold averages."""
    seconds: float = 0.0
    """That it took of training so far."""

    def wait_for_buffers(self) -> None:
        """Raises ExchangeError where a rank has died or stalled."""
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
        }


def load_under_way(weights: OuterWeights, saved: Mapping[str, Any]) -> UnderWay:
    """One that has arrived, as it was saved."""
    flight = weights.begin(saved["fragment"], goes_on=True)
    for bucket, average in zip(flight.buckets, saved["averages"], strict=True):
        bucket.flat.copy_(average)
    for mine, departed in zip(flight.departed, saved["departed"], strict=True):
        mine.copy_(departed)
    return UnderWay(flight, buffers=saved["buffers"], has_arrived=True)
