"""Methods that send every element of every gradient."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

from gradsieve.lab.methods.method import Distributed, PlayedInStep, Prepared, in_ddp
from gradsieve.lab.methods.played.rounded import Rounded


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
