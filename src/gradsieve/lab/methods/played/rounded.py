"""All gradients, each element rounded to as many bits."""

import torch
from torch import Tensor

from gradsieve.lab.methods.played.compressor import Gradients, Places


def eight_bit(gradient: Tensor) -> Tensor:
    """Round to 255 even steps between the largest magnitudes, with one scale for the tensor."""
    scale = gradient.abs().max().clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (gradient / scale).round().mul(scale)


class Rounded:
    """Average all gradients, with each element rounded to 32, 16 or 8 bits."""

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
