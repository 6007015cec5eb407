"""The average is the same bits on every device and with any number of threads."""

import numpy as np
import pytest
import torch

from gradsieve.bucket.average import Contribution, add_on_device, average_into
from gradsieve.bucket.plan import Piece
from gradsieve.codec import decode_frame, encode_frame, pruned_section, whole_section


def sections(seed):
    generator = np.random.default_rng(seed)
    made = []
    for numel in (5000, 70_000, 10):
        values = generator.laplace(size=numel).astype(np.float32)
        if numel == 10:
            made.append(whole_section(values, "float32"))
            continue
        indices = np.flatnonzero(np.abs(values) > 1).astype(np.int32)
        made.append(pruned_section(indices, values[indices], numel, 1.0, "levels"))
    return made


def test_threads_do_not_change_a_bit():
    part = [Piece(number, 0, numel) for number, numel in enumerate((5000, 70_000, 10))]
    frames = [decode_frame(encode_frame(sections(seed))) for seed in range(3)]
    added = [Contribution(frame, part, 1 / 3) for frame in frames]
    alone = torch.full((75_010,), 7.0)
    average_into(alone, added, [None] * 3)
    for threads in (2, 3, 8):
        together = torch.full((75_010,), 7.0)
        average_into(together, added, [None] * 3, threads)
        assert torch.equal(alone, together)


@pytest.mark.parametrize("factor", [1 / 3, 0.5, 1 / 7])
def test_a_device_adds_the_same_bits_as_the_compiled_loop(factor):
    start = torch.randn(70_000, generator=torch.Generator().manual_seed(0))
    section = sections(1)[1]
    compiled, operations = start.clone(), start.clone()
    section.add_to(compiled.numpy(), factor)
    add_on_device(operations, *section.survivors(), factor)
    assert torch.equal(compiled, operations)
