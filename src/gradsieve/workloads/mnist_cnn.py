"""The network of the original study: two convolutions and two dense layers on MNIST.

It is the easy case: 98 % of its 3.27 M parameters lie in one matrix, `dense1`, and almost any
pruned gradient trains it. What holds here is a necessary condition, not evidence.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from gradsieve.workloads.mnist import Split

BATCH_SIZE = 50
"""Images a rank and step."""

STEPS = 1000
"""Steps of a whole run."""

LEARNING_RATE = 1e-4
"""Adam's learning rate in the original study; 1e-3 reaches a higher accuracy."""


class MnistCnn(nn.Module):
    """Images float32 [N, 1, 28, 28] to logits float32 [N, 10]; 3,274,634 parameters.

    Convolution 5 x 5 x 32, ReLU, max pool 2, convolution 5 x 5 x 64, ReLU, max pool 2, dense
    1,024, ReLU, dropout 0.5, dense 10. Weights are drawn from torch's global generator: normal
    with sigma 0.1, cut at two sigma (which leaves a standard deviation of 0.088); biases are 0.1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.dense1 = nn.Linear(7 * 7 * 64, 1024)
        self.dropout = nn.Dropout(0.5)
        self.dense2 = nn.Linear(1024, 10)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
            else:
                nn.init.constant_(parameter, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.dense1(x.flatten(1)))
        logits: torch.Tensor = self.dense2(self.dropout(x))
        return logits


def make_optimizer(model: nn.Module, lr: float = LEARNING_RATE) -> torch.optim.Adam:
    """Adam with torch's default betas and epsilon, which are those of the original study."""
    return torch.optim.Adam(model.parameters(), lr=lr)


def batches(
    split: Split, rank: int, world_size: int, seed: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of one rank: images float32 [batch_size, 1, 28, 28], labels int64.

    All ranks cut the same permutation, a new one each epoch, into batches of `world_size *
    batch_size` images, and each takes its own part: within an epoch no image comes twice, and
    what the ranks see together in a step depends on `world_size * batch_size` alone. Images left
    over at the end of an epoch are skipped, so that all ranks take as many steps.

    Raises:
        ValueError: `rank` is not in 0 to `world_size - 1`, `batch_size` is not positive, or the
            split has fewer images than one step takes.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 to {world_size - 1} (world size - 1), not {rank}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if len(split.labels) < world_size * batch_size:
        raise ValueError(
            f"{world_size} ranks x {batch_size} images a step need {world_size * batch_size} "
            f"images; the split has {len(split.labels)}"
        )
    return _endless(split, rank, world_size, seed, batch_size)


def _endless(
    split: Split, rank: int, world_size: int, seed: int, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images, labels = split
    step_size = world_size * batch_size
    while True:
        order = torch.randperm(len(labels), generator=generator)
        for step_start in range(0, len(order) - step_size + 1, step_size):
            start = step_start + rank * batch_size
            mine = order[start : start + batch_size]
            yield images[mine], labels[mine]


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, batch: int = 500) -> float:
    """The share of `split` that `model` classifies correctly, 0 to 1, with dropout off.

    The images are moved to the model's device `batch` at a time; the model's training flag is
    afterwards as it was.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        correct = 0
        for start in range(0, len(split.labels), batch):
            images = split.images[start : start + batch]
            labels = split.labels[start : start + batch]
            predicted = model(images.to(device)).argmax(dim=1)
            correct += int((predicted == labels.to(device)).sum())
    finally:
        model.train(was_training)
    return correct / len(split.labels)
