"""Top-k: the largest elements as pairs of index and value."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsieve.lab.methods.method import PlayedInStep
from gradsieve.lab.methods.played.compressor import Gradients, bits_of_positions


def prune(gradient: Tensor, density: float) -> Tensor:
    """Keep a share of the elements, the largest in magnitude, and set the others to zero."""
    kept = max(1, round(density * gradient.numel()))
    limit = gradient.abs().flatten().kthvalue(gradient.numel() - kept + 1).values
    return torch.where(gradient.abs() >= limit, gradient, 0.0)


class LargestOfEach:
    """Send the largest of gradient and residual, as int32 and float32, with error feedback."""

    def __init__(self, parameters: Sequence[Tensor], ranks: int, density: float) -> None:
        self.density = density
        self.bits_at_entropy = 0.0
        self.residuals = [[torch.zeros_like(p) for p in parameters] for _ in range(ranks)]

    def average(self, gradients: Gradients) -> tuple[list[Tensor], float]:
        averages, sent = [torch.zeros_like(gradient) for gradient in gradients[0]], 0
        for own, residuals in zip(gradients, self.residuals, strict=True):
            for average, gradient, residual in zip(averages, own, residuals, strict=True):
                residual += gradient
                kept = prune(residual, self.density)
                residual -= kept
                average += kept / len(gradients)
                count = int(kept.count_nonzero())
                sent += count
                positions = bits_of_positions(kept.numel(), count)
                self.bits_at_entropy += (positions + 32 * count) / len(gradients)
        return averages, 64 * sent / len(gradients)


class TopK(PlayedInStep):
    form = "topk:DENSITY"

    def __init__(self, options: str = "") -> None:
        self.density = float(options)
        if not 0 < self.density <= 1:
            raise ValueError(f"DENSITY must be above 0 and at most 1, got {options}")

    def compressor(self, parameters: Sequence[Tensor], ranks: int) -> LargestOfEach:
        return LargestOfEach(parameters, ranks, self.density)
