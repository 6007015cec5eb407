"""Steps of synchronous training, played rank by rank in one process."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor, nn

from gradsieve.lab.methods.played.compressor import Compressor
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import cross_entropy

Batches = Sequence[Iterator[tuple[Tensor, Tensor]]]
"""The batches of each rank."""


class PlayedTraining(Protocol):
    def step(self, batches: Batches) -> tuple[float, float]:
        """Train one step; return the first rank's loss and the mean bits that a rank sent."""

    def finish(self) -> float:
        """End training after the last step; return the bits of what was still to be sent."""

    @property
    def model(self) -> nn.Module:
        """The model to judge: the one that all ranks have, or the mean of theirs."""

    @property
    def compressor(self) -> object:
        """What averages gradients or pseudo-gradients."""


class Synchronous:
    """Training of one model that all ranks hold alike."""

    def __init__(self, replica: Replica, compressor: Compressor) -> None:
        self.replica = replica
        self.compressor: Compressor = compressor

    @property
    def model(self) -> nn.Module:
        return self.replica.model

    def step(self, batches: Batches) -> tuple[float, float]:
        losses, gradients = zip(*(backward(self.model, *next(own)) for own in batches), strict=True)
        averages, sent = self.compressor.average(gradients)
        for parameter, average in zip(self.model.parameters(), averages, strict=True):
            parameter.grad = average
        self.replica.update()
        return losses[0], sent

    def finish(self) -> float:
        return 0.0


def backward(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, list[Tensor]]:
    """Return the loss of one rank's batch, and its gradients."""
    model.zero_grad(set_to_none=True)
    loss = cross_entropy(model, inputs, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.detach() for p in model.parameters() if p.grad is not None]
    return loss.item(), gradients
