"""Ways to average the ranks' gradients, and what each sends for it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradsieve.lab.bench.peers import eight_bit, prune

Gradients = Sequence[Sequence[Tensor]]
"""Of each rank, one a parameter."""
Places = Sequence[int] | None
"""Of the parameters among the model's; None: all of them."""


class Compressor(Protocol):
    def average(self, gradients: Gradients) -> tuple[list[Tensor], float]:
        """What the optimizer gets of each parameter, and the bits that a rank sends on average."""


class Rounded:
    """Every gradient in full, each element rounded."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def average(self, gradients: Gradients, places: Places = None) -> tuple[list[Tensor], float]:
        averages = [
            torch.stack([self.rounded(gradient) for gradient in of_ranks]).mean(dim=0)
            for of_ranks in zip(*gradients, strict=True)
        ]
        return averages, self.bits * sum(average.numel() for average in averages)

    def rounded(self, gradient: Tensor) -> Tensor:
        match self.bits:
            case 8:
                return eight_bit(gradient)
            case 16:
                return gradient.half().float()
        return gradient


class TopK:
    """The largest of gradient and residual as pairs of int32 and float32, with error feedback."""

    def __init__(self, parameters: Sequence[Tensor], ranks: int, density: float) -> None:
        self.density = density
        self.residuals = [[torch.zeros_like(p) for p in parameters] for _ in range(ranks)]

    def average(self, gradients: Gradients) -> tuple[list[Tensor], float]:
        averages, sent = [torch.zeros_like(gradient) for gradient in gradients[0]], 0
        for own, residuals in zip(gradients, self.residuals, strict=True):
            for average, gradient, residual in zip(averages, own, residuals, strict=True):
                residual += gradient
                kept = prune(residual, self.density)
                residual -= kept
                average += kept / len(gradients)
                sent += int(kept.count_nonzero())
        return averages, 64 * sent / len(gradients)


class PowerSGD:
    """Low rank with error feedback and warm start.

    T. Vogels et al., PowerSGD, NeurIPS 2019, algorithms 1 and 2. Vectors travel as they are, as in
    PyTorch's hook.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rank = rank
        self.residuals = [[torch.zeros_like(p) for p in parameters] for _ in range(ranks)]
        self.rights = [
            torch.randn(p[0].numel(), rank, generator=generator, dtype=torch.float32, device="cpu")
            if p.dim() > 1
            else None
            for p in parameters
        ]

    def average(self, gradients: Gradients) -> tuple[list[Tensor], float]:
        averages: list[Tensor] = []
        bits = 0.0
        for place, right in enumerate(self.rights):
            own = [gradient[place] for gradient in gradients]
            if right is None:
                averages.append(torch.stack(own).mean(dim=0))
                bits += 32 * own[0].numel()
                continue
            left = [residuals[place] for residuals in self.residuals]
            for residual, gradient in zip(left, own, strict=True):
                residual += gradient
            matrices = [residual.flatten(1) for residual in left]
            basis = torch.linalg.qr(torch.stack([m @ right for m in matrices]).mean(dim=0)).Q
            right = torch.stack([m.T @ basis for m in matrices]).mean(dim=0)
            self.rights[place] = right
            near = (basis @ right.T).view_as(own[0])
            for residual in left:
                residual -= near
            averages.append(near)
            bits += 32 * self.rank * sum(matrices[0].shape)
        return averages, bits
