"""Methods that send every element of every gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

from gradsieve.lab.methods.method import Distributed, PlayedInStep, Prepared, in_ddp
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


class Ddp(Distributed):
    """Plain DDP."""

    form = "ddp"

    def prepare(self, model: nn.Module) -> Prepared:
        return Prepared(in_ddp(model))


class Dense(PlayedInStep):
    """Float32 gradients, as plain DDP averages them."""

    form = "dense"

    def compressor(self, parameters: Sequence[Tensor], ranks: int) -> Rounded:
        return Rounded(32)


class Fp16(Distributed, PlayedInStep):
    """Gradients cast to half precision; among real ranks by PyTorch's hook."""

    form = "fp16"

    def prepare(self, model: nn.Module) -> Prepared:
        wrapped = in_ddp(model)
        wrapped.register_comm_hook(None, fp16_compress_hook)
        return Prepared(wrapped)

    def compressor(self, parameters: Sequence[Tensor], ranks: int) -> Rounded:
        return Rounded(16)


class EightBit(PlayedInStep):
    """Gradients rounded to 8 bits, with one scale a parameter."""

    form = "8-bit"

    def compressor(self, parameters: Sequence[Tensor], ranks: int) -> Rounded:
        return Rounded(8)
