"""MNIST as a task: the batches of each rank, and the accuracy of a model."""

from collections.abc import Iterator
from functools import cache

import torch
from torch import nn

from gradsieve.lab.workloads.mnist import Split, load_mnist
from gradsieve.lab.workloads.workload import Judged, evaluating, require_rank

BATCH_SIZE = 50
"""The images of a rank in a step."""


def batches(
    split: Split, rank: int, world_size: int, seed: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield endless batches of one rank: images float32 [batch_size, 1, 28, 28], labels int64.

    All ranks cut the same permutation, a new one each epoch, into batches of `world_size *
    batch_size` images, and each takes its own part: within an epoch no image comes twice, and
    what the ranks see together in a step depends on `world_size * batch_size` alone. Images left
    over at the end of an epoch are skipped, so that all ranks take as many steps.

    Raises:
        ValueError: `rank` is not in 0 to `world_size - 1`, `batch_size` is not positive, or the
            split has fewer images than one step takes.
    """
    require_rank(rank, world_size)
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
        order = torch.randperm(len(labels), generator=generator, dtype=torch.int64, device="cpu")
        for step_start in range(0, len(order) - step_size + 1, step_size):
            start = step_start + rank * batch_size
            mine = order[start : start + batch_size]
            yield images[mine], labels[mine]


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, batch: int = 500) -> float:
    """Return the share of `split`, 0 to 1, that `model` classifies correctly with dropout off.

    The images are moved to the model's device `batch` at a time; the model's training flag is
    afterwards as it was.
    """
    correct = 0
    with evaluating(model) as device:
        for start in range(0, len(split.labels), batch):
            images = split.images[start : start + batch]
            labels = split.labels[start : start + batch]
            predicted = model(images.to(device)).argmax(dim=1)
            correct += int((predicted == labels.to(device)).sum())
    return correct / len(split.labels)


@cache
def _training_images() -> Split:
    """Return the training images: one copy of 190 MB for all ranks that are played in a process."""
    return load_mnist(train=True)


def batches_of_training_images(
    rank: int, world_size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `batches` of the whole training set."""
    return batches(_training_images(), rank, world_size, seed)


def accuracy_on_test_images(model: nn.Module, rank: int = 0, world_size: int = 1) -> Judged:
    """Return the `accuracy` on a rank's share of the test set."""
    test = load_mnist(train=False)
    share = Split(test.images[rank::world_size], test.labels[rank::world_size])
    samples = len(share.labels)
    return Judged(accuracy(model, share) * samples, samples)
