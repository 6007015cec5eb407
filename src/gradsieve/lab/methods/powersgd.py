"""PowerSGD: low-rank approximations of the gradients, with error feedback and warm start.

T. Vogels et al., PowerSGD, NeurIPS 2019, algorithms 1 and 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from gradsieve.lab.methods.method import Distributed, PlayedInStep, Prepared, in_ddp
from gradsieve.lab.methods.played.compressor import Gradients

ONE_BUCKET_MB = 2**20


def random_factor(columns: int, rank: int, generator: torch.Generator) -> Tensor:
    return torch.randn(columns, rank, generator=generator, dtype=torch.float32, device="cpu")


def power_iteration(matrices: Sequence[Tensor], right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors L and R of L Rᵀ, which is near the mean of the ranks' matrices.

    Args:
        matrices: one for each rank, all of one shape (rows, columns).
        right: the factor R to start from, of shape (columns, rank).
    """
    left = torch.linalg.qr(torch.stack([m @ right for m in matrices]).mean(dim=0)).Q
    return left, torch.stack([m.T @ left for m in matrices]).mean(dim=0)


class LowRank:
    """Average matrices by one power iteration a step; vectors travel as they are, as in DDP's hook.

    Args:
        rank: the rank of the approximations.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rank = rank
        self.residuals = [[torch.zeros_like(p) for p in parameters] for _ in range(ranks)]
        self.rights = [
            random_factor(p[0].numel(), rank, generator) if p.dim() > 1 else None
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
            residuals = [of_rank[place] for of_rank in self.residuals]
            for residual, gradient in zip(residuals, own, strict=True):
                residual += gradient
            matrices = [residual.flatten(1) for residual in residuals]
            left, right = power_iteration(matrices, right)
            self.rights[place] = right
            near = (left @ right.T).view_as(own[0])
            for residual in residuals:
                residual -= near
            averages.append(near)
            bits += 32 * self.rank * sum(matrices[0].shape)
        return averages, bits


class PowerSgd(Distributed, PlayedInStep):
    """PowerSGD at a rank. Real ranks use PyTorch's hook, from the second step on."""

    form = "powersgd:RANK"

    def __init__(self, options: str = "") -> None:
        if not options.isdecimal() or int(options) < 1:
            raise ValueError(f"RANK must be a whole number, 1 or more, got {options!r}")
        self.rank = int(options)

    def prepare(self, model: nn.Module) -> Prepared:
        # The hook issues collectives in callbacks: with two buckets on Gloo it aborts.
        wrapped = in_ddp(model, ONE_BUCKET_MB)
        state = PowerSGDState(None, self.rank, start_powerSGD_iter=2)
        wrapped.register_comm_hook(state, powerSGD_hook)
        return Prepared(wrapped)

    def compressor(self, parameters: Sequence[Tensor], ranks: int) -> LowRank:
        return LowRank(parameters, ranks, self.rank)
