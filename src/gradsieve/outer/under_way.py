"""The exchange that is under way, which a checkpoint may save before it is merged."""

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
    """An exchange between `OuterExchange.begin` and `OuterExchange.end`."""

    flight: Flight
    every: int = 1
    """Number of inner steps of the phase."""
    since: int = 1
    """Number of inner steps since the exchange before."""
    futures: list[torch.futures.Future[Tensor]] = field(default_factory=list)
    """The future of each bucket. On a device, waiting for it orders the streams."""
    buffer_average: BufferAverage | None = None
    """The average of the model's statistics that is under way; None if they are not exchanged or
    have arrived."""
    buffers: list[Tensor] = field(default_factory=list)
    """The averages of the statistics, once they have arrived."""
    has_arrived: bool = False
    """Whether the buckets hold the averages."""
    exchange: StepRecord | None = None
    """The record of the exchange once it has arrived; None if it was loaded."""
    seconds: float = 0.0
    """Seconds that the exchange has added to training so far."""

    def wait(self) -> None:
        """Wait for everything that `SieveState.end_step` does not wait for.

        Raises what `BufferAverage.wait` raises.
        """
        for future in self.futures:
            future.wait()
        if self.buffer_average is not None:
            self.buffers = self.buffer_average.wait()
            self.buffer_average = None

    def save(self) -> dict[str, object]:
        """Return the content of an exchange that has arrived, as plain data."""
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
    """Return the saved exchange, which has arrived. Nothing else changes.

    Args:
        buffers: the buffers of the model that are averaged.
        saved: what `UnderWay.save` has returned. It must have passed `require_under_way`.

    Raises:
        ValueError: it is of another model or has other fragments.
    """
    fragment = count("under_way.fragment", saved["fragment"], 0, len(weights.parts) - 1)
    flight = weights.begin(fragment, goes_on=True)
    averages = [bucket.flat for bucket in flight.buckets]
    replace_all("under_way.averages", averages, saved["averages"])
    replace_all("under_way.departed", flight.departed, saved["departed"])
    # Buffers travel with the last fragment.
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
