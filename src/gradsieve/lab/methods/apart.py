"""Limits to compare with: ranks that exchange no gradients, and so have no common model."""

from torch import nn

from gradsieve.lab.methods.method import Distributed, Prepared


class LockStep(Distributed):
    """Nothing travels but one 4-byte all-reduce a step."""

    form = "lock-step"
    trains_together = False

    def prepare(self, model: nn.Module) -> Prepared:
        return Prepared(model)


class Alone(Distributed):
    """Nothing travels, and nobody waits."""

    form = "alone"
    trains_together = False

    def prepare(self, model: nn.Module) -> Prepared:
        return Prepared(model)
