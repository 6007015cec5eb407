"""Local steps of many ranks in one process, with the schedule and the weights of OuterSync."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradsieve.lab.methods.local_words import LocalSettings
from gradsieve.lab.methods.played.compressor import PlacedCompressor
from gradsieve.lab.methods.played.rounded import Rounded
from gradsieve.lab.methods.played.sieve import PlayedSieve
from gradsieve.lab.methods.played.synchronous import Batches, Synchronous, backward
from gradsieve.lab.workloads.replica import Replica
from gradsieve.outer.fragments import split_alike
from gradsieve.outer.schedule import Schedule
from gradsieve.outer.weights import Flight, OuterWeights, Unsent, nothing
from gradsieve.topology import TOPOLOGIES, DenseTopology

FLOAT32 = 4
"""Bytes of an element."""


@dataclass(slots=True)
class LocalRank:
    replica: Replica
    weights: OuterWeights
    flight: Flight | None = None


class LocalSteps:
    """Local steps of ranks that begin alike.

    Args:
        replica: the model that all ranks begin with, or, with `start_step`, train together first.
        compressor: what averages pseudo-gradients; None for that of the settings.

    Raises:
        ValueError: a number is out of range, or the settings ask for a link.
    """

    def __init__(
        self,
        replica: Replica,
        ranks: int,
        settings: LocalSettings,
        compressor: PlacedCompressor | None = None,
    ) -> None:
        self.settings = settings
        self.schedule = Schedule(settings.every, settings.fragments, settings.delay)
        parameters = list(replica.model.parameters())
        # Refuse too many fragments now, not after the synchronous steps.
        split_alike([parameter.numel() for parameter in parameters], settings.fragments)
        self.compressor = compressor or compressor_of(settings, parameters, ranks)
        through_sieve = settings.start == "sieve"
        first = PlayedSieve(parameters, ranks, settings.sieve) if through_sieve else Rounded(32)
        self.together = Synchronous(replica, first)
        self.count = ranks
        self.ranks: list[LocalRank] = []
        """Empty as long as the ranks train together."""
        self.done = 0
        self.sent = 0.0
        """Bits sent in this step."""

    @property
    def model(self) -> nn.Module:
        """A model with the mean of what the ranks' weights would be after `finish`."""
        if not self.ranks:
            return self.together.model
        mean = deepcopy(self.ranks[0].replica.model)
        with torch.no_grad():
            for place, parameter in enumerate(mean.parameters()):
                own = [rank.weights.settled(place) for rank in self.ranks]
                parameter.copy_(torch.stack(own).mean(dim=0))
        return mean

    def step(self, batches: Batches) -> tuple[float, float]:
        self.done += 1
        if self.done <= self.settings.start_step:
            return self.together.step(batches)
        if not self.ranks:
            self.ranks = [self.make_rank() for _ in range(self.count)]
        self.sent, losses = 0.0, []
        for rank, own in zip(self.ranks, batches, strict=True):
            loss, _ = backward(rank.replica.model, *next(own))
            rank.replica.update()
            losses.append(loss)
        self.schedule.advance(self.begin, self.end)
        return losses[0], self.sent

    def finish(self) -> float:
        self.sent = 0.0
        self.schedule.finish(self.begin, self.end)
        return self.sent

    def make_rank(self) -> LocalRank:
        replica = self.together.replica.copy()
        named = list(replica.model.named_parameters())
        return LocalRank(
            replica, OuterWeights(named, self.settings.optimizer, self.settings.fragments)
        )

    def begin(self, fragment: int, delay: int) -> None:
        flights = [rank.weights.begin(fragment, goes_on=delay > 0) for rank in self.ranks]
        moved = [[g for bucket in f.buckets for g in bucket.shaped()] for f in flights]
        places = self.ranks[0].weights.parts[fragment]
        averages, sent = self.compressor.average(moved, places)
        self.sent += sent
        for rank, flight, own in zip(self.ranks, flights, moved, strict=True):
            for gradient, average in zip(own, averages, strict=True):
                gradient.copy_(average)
            rank.flight = flight

    def end(self) -> None:
        for number, rank in enumerate(self.ranks):
            if rank.flight is not None:
                rank.weights.end(rank.flight, self.unsent(number))
                rank.flight = None

    def unsent(self, rank: int) -> Unsent:
        """Return the function that tells what a rank keeps in its weights."""
        sieve, names = self.compressor, self.ranks[rank].weights.names
        if not isinstance(sieve, PlayedSieve):
            return nothing
        return lambda name: sieve.unsent(rank, names.index(name))


def compressor_of(
    settings: LocalSettings, parameters: Sequence[Tensor], ranks: int
) -> PlacedCompressor:
    topology = TOPOLOGIES.get(settings.sieve.topology_name)
    if isinstance(topology, DenseTopology):
        return Rounded(8 * (topology.element_size or FLOAT32))
    return PlayedSieve(
        parameters, ranks, settings.sieve, settings.residual_decay, tells_own=settings.holds
    )
