"""The largest elements of each chunk, with a residual that fades."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradsieve.lab.methods.played.chunks import Chunks
from gradsieve.lab.methods.played.compressor import Gradients, Places, bits_of_positions
from gradsieve.lab.methods.played.quantized import quantize, table_bits


class TopOfChunks:
    """Send the largest elements of each chunk; the average of an element is over those who sent it.

    Args:
        chunks: for each parameter.
        kept: the number of elements that a chunk of a size keeps.
        bits: the bits of a value; those of a position are counted as a plain index.
        decay: the factor of a residual before each exchange.
        subtracted: the share of what is sent that leaves the residual.
    """

    def __init__(
        self,
        chunks: Sequence[Chunks],
        ranks: int,
        kept: Callable[[int], int],
        *,
        bits: int,
        decay: float,
        subtracted: float = 1.0,
    ) -> None:
        self.chunks, self.kept, self.bits = chunks, kept, bits
        self.decay, self.subtracted = decay, subtracted
        self.residuals = [
            [torch.zeros(c.shape, dtype=torch.float32, device="cpu") for c in chunks]
            for _ in range(ranks)
        ]
        self.bits_at_entropy = 0.0

    @torch.no_grad()
    def average(self, gradients: Gradients, places: Places = None) -> tuple[list[Tensor], float]:
        averages, sent = [], 0.0
        chosen = range(len(self.chunks)) if places is None else places
        for number, place in enumerate(chosen):
            chunks = self.chunks[place]
            kept = self.kept(chunks.size)
            total = torch.zeros(chunks.count, chunks.size, dtype=torch.float32, device="cpu")
            senders = torch.zeros_like(total)
            for own, residuals in zip(gradients, self.residuals, strict=True):
                where, values = self.send(own[number], residuals[place], chunks, kept)
                total.scatter_add_(1, where, values)
                senders.scatter_add_(1, where, torch.ones_like(values))
            averages.append(chunks.join(total / senders.clamp(min=1)))
            values_bits = chunks.count * kept * self.bits + table_bits(self.bits)
            index_bits = 0 if kept == chunks.size else math.ceil(math.log2(chunks.size))
            sent += chunks.count * kept * index_bits + values_bits
            entropy = chunks.count * bits_of_positions(chunks.size, kept)
            self.bits_at_entropy += entropy + values_bits
        return averages, sent

    def send(
        self, gradient: Tensor, residual: Tensor, chunks: Chunks, kept: int
    ) -> tuple[Tensor, Tensor]:
        """Return the places and values that a rank sends, [count, kept], and keep the rest."""
        residual.mul_(self.decay).add_(gradient)
        cut = chunks.cut(residual)
        where = cut.abs().topk(kept, dim=1, sorted=False).indices
        values = quantize(cut.gather(1, where), self.bits)
        sent = torch.zeros_like(cut).scatter_(1, where, values)
        residual.sub_(chunks.join(sent), alpha=self.subtracted)
        return where, values
