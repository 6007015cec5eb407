"""Values rounded to few bits, as SparseLoCo and MuLoCo round them, and means of such values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsieve.lab.methods.played.compressor import Gradients, Places

DEVIATIONS = 6
"""The range that the levels divide evenly, in standard deviations; values beyond it are cut off."""
BITS = (1, 2, 4, 8, 16, 32)
"""The bits that a value may take; 16 stands for bfloat16, 32 for float32."""
EXACT = 16
"""From so many bits on, values are floats and no table of levels travels."""


def quantize(values: Tensor, bits: int) -> Tensor:
    """Round values of one tensor to `bits` bits, into a tensor of its own.

    Each level stands for the mean of its values.
    """
    if bits == 32:
        return values.clone()
    if bits == 16:
        return values.bfloat16().float()
    mean = values.mean()
    centred = values - mean
    if not centred.isfinite().all():
        # Training has diverged; there are no levels.
        return values.clone()
    levels = 2**bits
    deviation = centred.square().sum().div(max(1, values.numel() - 1)).sqrt()
    step = DEVIATIONS * deviation / levels
    if step == 0:
        return values.clone()
    level = (centred / step + levels // 2).round().clamp(0, levels - 1).long().flatten()
    sums = torch.zeros(levels, dtype=torch.float32, device=values.device)
    sums.index_add_(0, level, centred.flatten())
    means: Tensor = sums / level.bincount(minlength=levels).clamp(min=1)
    return means[level].view_as(values) + mean


def table_bits(bits: int) -> int:
    """Return the bits of a tensor's levels and mean, float32, which travel with its values."""
    return 0 if bits >= EXACT else 32 * (2**bits + 1)


class QuantizedMean:
    """Average quantized tensors, with a residual of the rounding, and quantize the average.

    The average is quantized because in an all-to-all it travels a second time, to all ranks.

    Args:
        decay: the factor of a residual before each exchange; None for no residuals.
    """

    def __init__(
        self, parameters: Sequence[Tensor], ranks: int, bits: int, decay: float | None
    ) -> None:
        self.bits, self.decay = bits, decay
        self.residuals = [[torch.zeros_like(p) for p in parameters] for _ in range(ranks)]

    @torch.no_grad()
    def average(self, gradients: Gradients, places: Places = None) -> tuple[list[Tensor], float]:
        averages, sent = [], 0.0
        chosen = range(len(self.residuals[0])) if places is None else places
        for number, place in enumerate(chosen):
            rounded = [
                self.rounded(own[number], residuals[place])
                for own, residuals in zip(gradients, self.residuals, strict=True)
            ]
            averages.append(quantize(torch.stack(rounded).mean(dim=0), self.bits))
            sent += self.bits * rounded[0].numel() + table_bits(self.bits)
        return averages, sent

    def rounded(self, gradient: Tensor, residual: Tensor) -> Tensor:
        if self.decay is None:
            return quantize(gradient, self.bits)
        residual.mul_(self.decay).add_(gradient)
        rounded = quantize(residual, self.bits)
        residual -= rounded
        return rounded
