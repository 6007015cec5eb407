"""A decoder-only transformer on the bytes of Python's standard library.

It is the hard case and the judge: many matrices of one size, no coordinate alike, AdamW. Two
sizes: `gpt` for speed, `gpt-small` for quality.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradsieve.lab.workloads.muon import muon_beside
from gradsieve.lab.workloads.stdlib_text import load_stdlib_text
from gradsieve.lab.workloads.workload import (
    Judged,
    Workload,
    cross_entropy,
    evaluating,
    require_rank,
)

VOCABULARY = 256
CONTEXT = 128
"""The bytes of a window."""
WINDOWS = 8
"""The windows of a rank in a step: 1,024 tokens."""
LEARNING_RATE = 1e-3
MUON_LEARNING_RATE = 4e-3
BESIDE_MUON = 2e-3
"""The rate of AdamW for what Muon does not train, the best one of training without Muon."""
WEIGHT_DECAY = 0.1
HELD_OUT_WINDOWS = 256
EVALUATED_AT_ONCE = 32
WARMUP_STEPS = 50


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each behind a norm and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        y: Tensor = self.contract(F.gelu(self.expand(self.norm2(x))))
        return x + y

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attention(x).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        y: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return y


class Gpt(nn.Module):
    """Bytes int64 [N, T], T at most CONTEXT, to logits float32 [N, T, 256].

    Learned positions, norms before each layer, the output matrix tied to the embedding. Weights
    are normal with sigma 0.02, those that end a residual path 0.02 / √(2 · layers); biases 0
    (Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3).
    """

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends_path = name.endswith(("projection.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers if ends_path else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def make_optimizer(model: nn.Module, lr: float = LEARNING_RATE) -> torch.optim.AdamW:
    return adamw(list(model.parameters()), lr)


def adamw(parameters: list[Tensor], lr: float = BESIDE_MUON) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)


def is_hidden(name: str) -> bool:
    """Return whether a parameter is in a block; embeddings, tied to the output, are not."""
    return "blocks." in name


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule: WARMUP_STEPS of linear warm-up, then a cosine to a tenth at the last step.

    A training that is shorter than the warm-up ends within it.
    """

    def factor(step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        done = min(1.0, (step - WARMUP_STEPS) / max(1, steps - 1 - WARMUP_STEPS))
        return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches(rank: int, world_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a rank's batches, endlessly: bytes int64 [WINDOWS, CONTEXT] and those that follow each.

    Windows start anywhere in the training text. All ranks draw the same `world_size * WINDOWS`
    places and each takes its own.

    Raises:
        ValueError: `rank` is not in 0 to `world_size - 1`.
    """
    require_rank(rank, world_size)
    return _endless(rank, world_size, seed)


def _endless(rank: int, world_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    text = load_stdlib_text().train
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(
            len(text) - CONTEXT,
            (world_size, WINDOWS),
            generator=generator,
            dtype=torch.int64,
            device="cpu",
        )
        yield windows(text, starts[rank])


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.arange(CONTEXT + 1, dtype=torch.int64, device="cpu")
    bytes_ = text[starts[:, None] + places].long()
    return bytes_[:, :-1], bytes_[:, 1:]


@torch.no_grad()
def held_out_loss(
    model: nn.Module, rank: int = 0, world_size: int = 1, *, count: int = HELD_OUT_WINDOWS
) -> Judged:
    """Return the loss, in nats a byte, on a rank's share of `count` held-out windows."""
    text = load_stdlib_text().held_out
    last = len(text) - CONTEXT - 1
    places = torch.linspace(0, last, count, dtype=torch.float64, device="cpu")
    starts = places.long()[rank::world_size]
    total = 0.0
    with evaluating(model) as device:
        for several in torch.split(starts, EVALUATED_AT_ONCE):
            inputs, targets = windows(text, several)
            loss = cross_entropy(model, inputs.to(device), targets.to(device))
            total += loss.item() * len(inputs)
    return Judged(total, len(starts))


def workload(name: str, *, layers: int, width: int, heads: int) -> Workload:
    return Workload(
        name=name,
        make_model=partial(Gpt, layers, width, heads),
        make_optimizer=make_optimizer,
        learning_rate=LEARNING_RATE,
        optimizer="adamw",
        other_optimizers={
            "muon": muon_beside(
                is_hidden, adamw, learning_rate=MUON_LEARNING_RATE, weight_decay=WEIGHT_DECAY
            )
        },
        make_schedule=make_schedule,
        batches=batches,
        metric=held_out_loss,
        metric_name="held-out loss",
        higher_is_better=False,
    )


GPT = workload("gpt", layers=8, width=320, heads=5)
"""9.99 million parameters."""
GPT_SMALL = workload("gpt-small", layers=5, width=128, heads=4)
"""1.04 million parameters."""
