"""The walk of the ranks over the images, and the share that a model classifies correctly."""

from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from gradsieve.lab.workloads import digits
from gradsieve.lab.workloads.digits import BATCH_SIZE, accuracy, batches, batches_of_training_images
from gradsieve.lab.workloads.mnist import Split, load_mnist


def numbered(count: int) -> Split:
    """A split in which every label is the number of its image."""
    labels = torch.arange(count)
    return Split(labels.float().reshape(count, 1, 1, 1).expand(count, 1, 28, 28), labels)


def test_batches_have_the_documented_shapes() -> None:
    images, labels = next(batches(numbered(200), 0, 2, seed=0))
    assert images.shape == (BATCH_SIZE, 1, 28, 28)
    assert labels.shape == (BATCH_SIZE,)
    assert torch.equal(images[:, 0, 3, 3].long(), labels)


def labels_of(rank: int, world_size: int, steps: int, seed: int = 3, count: int = 120) -> list[int]:
    walk = batches(numbered(count), rank, world_size, seed, batch_size=10)
    return torch.cat([labels for _, labels in islice(walk, steps)]).tolist()


def test_batches_are_deterministic_and_follow_the_seed() -> None:
    assert labels_of(1, 3, steps=10) == labels_of(1, 3, steps=10)
    assert labels_of(1, 3, steps=10) != labels_of(1, 3, steps=10, seed=4)


def test_ranks_share_an_epoch_without_overlap_and_cover_it() -> None:
    seen = [label for rank in range(3) for label in labels_of(rank, 3, steps=4)]
    assert sorted(seen) == list(range(120))


def test_every_epoch_is_shuffled_anew() -> None:
    two_epochs = labels_of(0, 1, steps=24)
    first, second = two_epochs[:120], two_epochs[120:]
    assert first != second
    assert sorted(first) == sorted(second) == list(range(120))


def test_what_is_left_over_is_skipped_by_all_ranks() -> None:
    # 125 images make six steps of 2 x 10; the seventh step is already the next epoch's.
    epoch = [label for rank in range(2) for label in labels_of(rank, 2, steps=6, count=125)]
    assert len(set(epoch)) == 120
    both = [label for rank in range(2) for label in labels_of(rank, 2, steps=12, count=125)]
    assert max(both.count(label) for label in range(125)) == 2


def test_a_step_of_all_ranks_depends_on_its_size_alone() -> None:
    two_ranks = {label for rank in range(2) for label in labels_of(rank, 2, steps=1)}
    walk = batches(numbered(120), 0, 1, seed=3, batch_size=20)
    assert set(next(walk)[1].tolist()) == two_ranks


@pytest.mark.parametrize(
    ("rank", "world_size", "batch_size", "complaint"),
    [
        (2, 2, 10, "rank must be in 0 to 1"),
        (-1, 2, 10, "rank must be"),
        (0, 1, 0, "batch_size must be at least 1"),
        (0, 3, 50, "need 150 images; the split has 120"),
    ],
)
def test_impossible_walks_are_refused_at_once(
    rank: int, world_size: int, batch_size: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        batches(numbered(120), rank, world_size, 0, batch_size)


class Constant(torch.nn.Module):
    """Says 3 to every image, and remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(F.one_hot(torch.tensor(3), 10).float())
        self.asked: list[tuple[int, bool, bool]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append((len(images), self.training, torch.is_grad_enabled()))
        return self.logits.expand(len(images), 10)


@pytest.mark.parametrize("training", [True, False])
def test_accuracy_counts_in_evaluation_mode_and_restores_the_flag(training: bool) -> None:
    model = Constant().train(training)
    split = Split(torch.zeros(7, 1, 28, 28), torch.tensor([3, 3, 1, 0, 3, 9, 3]))
    assert accuracy(model, split, batch=3) == pytest.approx(4 / 7)
    assert model.asked == [(3, False, False), (3, False, False), (1, False, False)]
    assert model.training is training


def test_accuracy_restores_the_flag_after_an_error() -> None:
    model = torch.nn.Conv2d(1, 10, kernel_size=28)
    with pytest.raises(RuntimeError):
        accuracy(model, Split(torch.zeros(2, 3, 28, 28), torch.zeros(2, dtype=torch.int64)))
    assert model.training


def test_the_metric_is_taken_on_the_test_images_and_the_batches_from_the_training_images() -> None:
    # 1,010 of the 10,000 test images show a 3.
    assert digits.accuracy_on_test_images(Constant()).mean == pytest.approx(0.1010)
    shares = [digits.accuracy_on_test_images(Constant(), rank, 3) for rank in range(3)]
    assert sum(share.samples for share in shares) == 10_000
    assert sum(share.total for share in shares) == pytest.approx(1010)
    training, test = load_mnist(train=True), load_mnist(train=False)
    images, _ = next(batches_of_training_images(1, 2, 0))
    assert (training.images == images[0]).flatten(1).all(1).any()
    assert not (test.images == images[0]).flatten(1).all(1).any()
