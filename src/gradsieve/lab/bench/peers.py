"""What other methods make of the same gradients: bits a parameter and squared error."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gradsieve.lab.methods.played.rounded import eight_bit
from gradsieve.lab.methods.powersgd import power_iteration, random_factor
from gradsieve.lab.methods.topk import prune

POWER_ITERATIONS = 3
"""PowerSGD's hook makes one iteration a step, from the last step's result. From random numbers it
takes about three to come as near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRow:
    source: str
    method: str
    bits_per_parameter: float
    relative_error: float
    """The squared error of what arrives over the squared norm of what was to be sent."""


def peer_rows(
    source: str, gradients: dict[str, Tensor], densities: tuple[float, ...]
) -> Iterator[PeerRow]:
    numel = sum(gradient.numel() for gradient in gradients.values())
    energy = sum(squares(gradient) for gradient in gradients.values())

    def row(method: str, bits: float, error: float) -> PeerRow:
        return PeerRow(
            source=source,
            method=method,
            bits_per_parameter=bits / numel,
            relative_error=error / energy,
        )

    for density in densities:
        pruned = [prune(gradient, density) for gradient in gradients.values()]
        left = sum(squares(g - kept) for g, kept in zip(gradients.values(), pruned, strict=True))
        halves = sum(
            squares(g - kept.half().float())
            for g, kept in zip(gradients.values(), pruned, strict=True)
        )
        sent = sum(int(kept.count_nonzero()) for kept in pruned)
        yield row(f"index, float32 at {density:.2%}", 64 * sent, left)
        yield row(f"bitmap, fp16 at {density:.2%}", numel + 16 * sent, halves)
    dense = sum(squares(g - g.half().float()) for g in gradients.values())
    yield row("fp16", 16 * numel, dense)
    yield row("8-bit", 8 * numel, sum(squares(g - eight_bit(g)) for g in gradients.values()))
    for rank in (1, 2, 4):
        approximations = [low_rank(gradient, rank) for gradient in gradients.values()]
        bits = sum(bits for _, bits in approximations)
        error = sum(
            squares(g - near)
            for g, (near, _) in zip(gradients.values(), approximations, strict=True)
        )
        yield row(f"PowerSGD rank {rank}", bits, error)


def squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def low_rank(gradient: Tensor, rank: int) -> tuple[Tensor, float]:
    """Return the approximation that PowerSGD makes of a gradient, and its bits."""
    matrix = gradient.reshape(gradient.shape[0], -1)
    if matrix.shape[1] == 1 or gradient.dim() < 2:
        return gradient, 32.0 * gradient.numel()
    right = random_factor(matrix.shape[1], rank, torch.Generator().manual_seed(0))
    for _ in range(POWER_ITERATIONS):
        left, right = power_iteration([matrix], right)
    bits = 32.0 * rank * sum(matrix.shape)
    return (left @ right.T).reshape(gradient.shape), bits


def error_at(rate: float, curve: list[tuple[float, float]]) -> float | None:
    """Return the error of a curve of (rate, error) at a rate, interpolated in logarithms.

    Beyond the end of the curve it is the error at the end; before its start it is None.
    """
    ordered = sorted(curve)
    if rate > ordered[-1][0]:
        return ordered[-1][1]
    for (low, error), (high, next_error) in pairwise(ordered):
        if low <= rate <= high and low < high:
            share = (math.log(rate) - math.log(low)) / (math.log(high) - math.log(low))
            return math.exp(math.log(error) * (1 - share) + math.log(next_error) * share)
    return None
