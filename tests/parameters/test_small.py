"""The limit below which parameters travel whole."""

import pytest

from gradsieve.parameters.small import LIMITS, choose_min_numel


def adapters(rank, width):
    """Sizes of the LoRA matrices of a block: attention, and a feed-forward of four times the width.

    Each adapted matrix (outputs × inputs) gets one of rank × inputs and one of outputs × rank.
    """
    adapted = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    return [rank * size for matrix in adapted for size in matrix]


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("width", [64, 256, 768, 4096])
def test_every_adapter_of_256_elements_or_more_is_pruned(rank, width):
    sizes = adapters(rank, width)
    assert choose_min_numel(sizes) <= max(LIMITS[-1], min(sizes))


def test_biases_and_norms_of_a_whole_model_stay_whole():
    matrices, vectors = [768 * 768] * 12, [768] * 30
    assert choose_min_numel(matrices + vectors) == LIMITS[0]
