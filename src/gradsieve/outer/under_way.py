"""The exchange that is under way, from its beginning to its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradsieve.outer.buffers import BufferAverage, empty_averages
from gradsieve.outer.weights import Flight, OuterWeights
from gradsieve.saved.fields import count, items, refuse, shown
from gradsieve.telemetry.record import StepRecord


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
    """One that has arrived, as it was saved and passed `require_under_way`; changes nothing else.

    Args:
        buffers: those that are averaged, on their devices.

    Raises:
        ValueError: it is of another model or of other fragments.
    """
    fragment = count("under_way.fragment", saved["fragment"], 0, len(weights.parts) - 1)
    flight = weights.begin(fragment, goes_on=True)
    averages = [bucket.flat for bucket in flight.buckets]
    replace_all("under_way.averages", averages, saved["averages"])
    replace_all("under_way.departed", flight.departed, saved["departed"])
    # They travel with the last fragment.
    averaged = empty_averages(buffers) if fragment == len(weights.parts) - 1 else []
    replace_all("under_way.buffers", averaged, saved["buffers"])
    return UnderWay(
        flight,
        every=saved["every"],
        since=saved["since"],
        buffers=averaged,
        has_arrived=True,
    )


@torch.no_grad()
def replace_all(field: str, mine: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    items(field, saved, len(mine))
    for own, other in zip(mine, saved, strict=True):
        if (own.shape, own.dtype) != (other.shape, other.dtype):
            refuse(field, shown(own), shown(other))
        own.copy_(other)
