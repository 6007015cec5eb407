"""Peers as they are played: the laws of each paper, and bits counted by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gradsieve.lab.methods.played.chunk_top import TopOfChunks
from gradsieve.lab.methods.played.chunks import Chunks, dct_matrix, side_of
from gradsieve.lab.methods.played.compressor import bits_of_positions
from gradsieve.lab.methods.played.quantized import QuantizedMean, quantize
from gradsieve.lab.methods.table import read_method
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import Judged, Workload

SHAPES = [torch.Size(shape) for shape in ((128, 96), (32, 3, 4, 4), (100,), (1,))]


def gradients(ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(ranks)]


def batches(rank, world_size, seed):
    generator = torch.Generator().manual_seed(100 * seed + rank)
    while True:
        inputs = torch.randn(8, 64, generator=generator)
        yield inputs, (inputs.sum(dim=1) > 0).long()


TINY = Workload(
    name="tiny",
    make_model=lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)),
    make_optimizer=lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr),
    learning_rate=1e-2,
    batches=batches,
    metric=lambda model, rank, ranks: Judged(0.0, 1),
    metric_name="test accuracy",
    higher_is_better=True,
)
NUMEL = 64 * 64 + 64 + 2 * 64 + 2


def trained(method, steps=6, ranks=3, rate=1e-2):
    """Return the training after so many steps, and all bits that a rank sent."""
    torch.manual_seed(0)
    replica = Replica(TINY, TINY.make_model(), rate, steps)
    training = read_method(method).play(replica, ranks)
    data = [batches(rank, ranks, 0) for rank in range(ranks)]
    sent = sum(training.step(data)[1] for _ in range(steps)) + training.finish()
    return training, sent


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("length", "longest", "side"), [(128, 64, 64), (96, 64, 48), (97, 64, 1)])
def test_sides_of_chunks_divide_the_tensors(length, longest, side):
    assert side_of(length, longest) == side


@pytest.mark.parametrize("dct", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_join_to_the_tensor_they_were_cut_from(shape, dct):
    chunks, tensor = Chunks(shape, 64, dct=dct), torch.randn(shape)
    cut = chunks.cut(tensor)
    assert cut.shape == (chunks.count, chunks.size)
    assert cut.norm() == pytest.approx(float(tensor.norm()), rel=1e-5)
    torch.testing.assert_close(chunks.join(cut), tensor, rtol=1e-5, atol=1e-5)


def test_a_chunk_is_a_square_of_the_matrix():
    matrix = torch.arange(128.0 * 96).view(128, 96)
    cut = Chunks(matrix.shape, 64).cut(matrix)
    assert cut.shape == (4, 64 * 48)
    assert torch.equal(cut[1].view(64, 48), matrix[:64, 48:])


@pytest.mark.parametrize("length", [1, 2, 48, 64])
def test_the_cosine_transform_is_orthonormal_and_its_first_row_is_the_mean(length):
    matrix = dct_matrix(length)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(length), rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix[0], torch.full((length,), length**-0.5))
    # The second frequency of a slope takes almost all that the mean leaves.
    slope = torch.arange(length, dtype=torch.float32)
    rest = (matrix @ (slope - slope.mean())).square()
    assert length == 1 or rest[1] > 0.98 * rest.sum()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantized_values_have_few_levels_and_their_mean(bits):
    values = torch.randn(5000) + 0.3
    rounded = quantize(values, bits)
    assert 1 < len(rounded.unique()) <= 2**bits
    assert rounded.mean() == pytest.approx(float(values.mean()), abs=1e-4)
    coarser = quantize(values, bits // 2) if bits > 1 else torch.full_like(values, values.mean())
    assert (rounded - values).norm() < 0.9 * (coarser - values).norm()


@pytest.mark.parametrize("values", [torch.zeros(5), torch.ones(1), torch.tensor([1.0, math.nan])])
def test_what_has_no_levels_passes_as_it_is(values):
    assert torch.equal(quantize(values, 2).nan_to_num(), values.nan_to_num())


def test_few_ways_to_choose_take_few_bits():
    assert bits_of_positions(4, 2) == pytest.approx(math.log2(6))
    assert bits_of_positions(4096, 4096) == 0
    assert bits_of_positions(4096, 1) == pytest.approx(12)


def top_of_chunks(ranks, kept=lambda size: max(1, size // 20), dct=False, **options):
    chunks = [Chunks(shape, 64, dct=dct) for shape in SHAPES]
    return TopOfChunks(chunks, ranks, kept, **({"bits": 2, "decay": 1.0} | options))


@pytest.mark.parametrize("dct", [False, True])
@pytest.mark.parametrize("bits", [2, 16, 32])
def test_nothing_is_lost_where_nothing_fades(bits, dct):
    compressor = top_of_chunks(1, bits=bits, dct=dct)
    arrived = [torch.zeros(shape) for shape in SHAPES]
    given = [torch.zeros(shape) for shape in SHAPES]
    for step in range(5):
        own = gradients(1, step)
        averages, _ = compressor.average(own)
        for total, part in zip(arrived, averages, strict=True):
            total += part
        for total, part in zip(given, own[0], strict=True):
            total += part
    assert any(residual.norm() > 1 for residual in compressor.residuals[0])
    for total, residual, wanted in zip(arrived, compressor.residuals[0], given, strict=True):
        torch.testing.assert_close(total + residual, wanted, rtol=1e-4, atol=1e-4)


def test_quantized_means_lose_nothing_but_the_rounding_of_the_average():
    parameters = gradients(1)[0]
    compressor = QuantizedMean(parameters, 1, 32, 1.0)
    averages, bits = compressor.average([parameters])
    assert bits == 32 * sum(shape.numel() for shape in SHAPES)
    assert all(torch.equal(a, b) for a, b in zip(averages, parameters, strict=True))
    coarse = QuantizedMean(parameters, 1, 2, 1.0)
    averages, _ = coarse.average([[g.clone() for g in parameters]])
    kept = coarse.residuals[0]
    for average, residual, wanted in zip(averages[:3], kept, parameters, strict=False):
        assert len(average.unique()) <= 4
        # Rounding a rounded tensor again changes nothing but the last places.
        torch.testing.assert_close(average + residual, wanted, rtol=1e-3, atol=1e-3)


def test_an_average_is_over_the_ranks_that_sent_the_element():
    first, second = torch.zeros(100), torch.zeros(100)
    first[[3, 7]], second[[3, 9]] = torch.tensor([4.0, 2.0]), torch.tensor([2.0, 8.0])
    chunks = [Chunks(first.shape, 64)]
    compressor = TopOfChunks(chunks, 2, lambda size: 1 + size // 50, bits=32, decay=1.0)
    (average,), _ = compressor.average([[first], [second]])
    assert (average[3], average[7], average[9]) == (3.0, 2.0, 8.0)


def test_residuals_fade_and_keep_the_share_that_is_not_subtracted():
    (shape,) = [SHAPES[0]]
    given = torch.randn(shape)
    chunks = [Chunks(shape, 64)]
    compressor = TopOfChunks(chunks, 1, lambda size: 1, bits=32, decay=0.5, subtracted=0.2)
    (average,), _ = compressor.average([[given.clone()]])
    torch.testing.assert_close(compressor.residuals[0][0], given - 0.2 * average)
    compressor.average([[torch.zeros(shape)]])
    assert compressor.residuals[0][0].norm() < 0.51 * given.norm()


def test_parameters_may_be_exchanged_in_parts():
    whole, parts = top_of_chunks(2), top_of_chunks(2)
    given = gradients(2)
    at_once, sent = whole.average([[g.clone() for g in own] for own in given])
    last, sent_last = parts.average([own[2:] for own in given], [2, 3])
    first, sent_first = parts.average([own[:2] for own in given], [0, 1])
    assert sent == pytest.approx(sent_first + sent_last)
    assert all(torch.equal(a, b) for a, b in zip(at_once, first + last, strict=True))


MEAN_OF_RANKS = "local:every=2,exchange=dense,lr=1,momentum=0"


@pytest.mark.parametrize(
    ("method", "same_as"),
    [
        ("sparseloco:every=2,k=4096,bits=32,decay=1", MEAN_OF_RANKS),
        ("muloco:every=2,bits=32,error_feedback=no,lr=1,momentum=0", MEAN_OF_RANKS),
        (
            "muloco:every=3,bits=32,lr=0.7,momentum=0.5",
            "local:every=3,exchange=dense,momentum=0.5,ramp=0",
        ),
        ("post-local:start_step=3,every=2", f"{MEAN_OF_RANKS},start_step=3"),
    ],
)
def test_peers_that_leave_nothing_out_are_dense_local_steps(method, same_as):
    training, sent = trained(method)
    other, other_sent = trained(same_as)
    torch.testing.assert_close(weights(training.model), weights(other.model), rtol=0, atol=1e-6)
    assert sent == other_sent


@pytest.mark.parametrize("method", ["sparseloco:every=3", "muloco:every=3,bits=2"])
def test_ranks_are_alike_after_each_exchange(method):
    training, _ = trained(method)
    first, *others = [weights(rank.replica.model) for rank in training.ranks]
    assert all(torch.equal(first, other) for other in others)


# The chunks of TINY: one of 64 x 64, one of 64, two of 64 in a row of 2, and one of 2.
def test_sparselocos_bits_are_those_of_a_hand_count():
    training, sent = trained("sparseloco:every=3,k=64,bits=2")
    matrix = 64 * (12 + 2)
    vector, output, bias = 1 * (6 + 2), 2 * (7 + 2), 1 * (1 + 2)
    tables = 4 * 32 * (4 + 1)
    assert sent == 2 * (matrix + vector + output + bias + tables)
    positions = math.log2(math.comb(4096, 64)) + 6 + math.log2(math.comb(128, 2)) + 1
    values = 2 * (64 + 1 + 2 + 1)
    assert training.compressor.bits_at_entropy == pytest.approx(2 * (positions + values + tables))
    assert training.compressor.bits_at_entropy < sent


def test_demos_bits_are_those_of_a_hand_count():
    training, sent = trained("demo:k=32", steps=5)
    # The output's bias has two frequencies, and sends both: no positions.
    assert sent == 5 * (32 * (12 + 16) + 32 * (6 + 16) + 32 * (7 + 16) + 2 * 16)
    assert 0.8 * sent < training.compressor.bits_at_entropy < sent


def test_mulocos_bits_are_those_of_a_hand_count():
    _, sent = trained("muloco:every=3,bits=4")
    assert sent == 2 * (4 * NUMEL + 4 * 32 * (16 + 1))


def test_top_ks_positions_are_counted_at_their_entropy():
    compressor = read_method("topk:0.01").compressor(gradients(1)[0], 2)
    _, sent = compressor.average(gradients(2))
    kept = [max(1, round(0.01 * shape.numel())) for shape in SHAPES]
    assert sent == 64 * sum(kept)
    positions = [bits_of_positions(s.numel(), k) for s, k in zip(SHAPES, kept, strict=True)]
    assert compressor.bits_at_entropy == pytest.approx(sum(positions) + 32 * sum(kept))


def test_demo_moves_every_weight_by_the_rate():
    torch.manual_seed(0)
    start = weights(TINY.make_model())
    training, _ = trained("demo:k=4096,weight_decay=0", steps=1, rate=1e-3)
    moved = (weights(training.model) - start).abs()
    assert moved[moved > 0].median() == pytest.approx(1e-3, rel=1e-3)
    decayed, _ = trained("demo:k=4096,weight_decay=1", steps=1, rate=1e-3)
    difference = weights(training.model) - weights(decayed.model)
    torch.testing.assert_close(difference, 1e-3 * start, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["sparseloco:every=4,k=512", "demo", "muloco:every=4,bits=2"])
def test_peers_learn(method):
    training, _ = trained(method, steps=60)
    inputs, targets = next(batches(9, 1, 5))
    assert (training.model(inputs).argmax(dim=1) == targets).float().mean() > 0.8


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("sparseloco:k=0", "k must be 1 or more"),
        ("sparseloco:k=4097", "k is at most 4096"),
        ("sparseloco:chunk=0", "chunk must be 1 or more"),
        ("sparseloco:bits=3", "bits must be one of 1, 2, 4, 8, 16, 32, got 3"),
        ("sparseloco:decay=1.5", "decay must be between 0 and 1"),
        ("sparseloco:decay=nan", "decay must be between 0 and 1"),
        ("sparseloco:every=0", "every must be 1 or more"),
        ("sparseloco:lr=0", "lr must be positive"),
        ("sparseloco:momentum=1", "momentum must be"),
        ("sparseloco:k", "write OPTION=VALUE"),
        ("sparseloco:k=x", "k must be a whole number"),
        ("sparseloco:decay=x", "decay must be a number"),
        ("sparseloco:k=3,k=4", "k is given twice"),
        ("sparseloco:sigma=1", "one of every, k, chunk, bits, decay, lr, momentum"),
        ("demo:k=0", "k must be 1 or more"),
        ("demo:decay=2", "decay must be between 0 and 1"),
        ("demo:every=5", "one of k, chunk, decay, subtract, weight_decay"),
        ("muloco:bits=16", "bits must be one of 2, 4, 8, 32"),
        ("muloco:error_feedback=maybe", "error_feedback"),
        ("muloco:lr=inf", "lr must be positive and finite"),
        ("post-local:start_step=-1", "start_step must be"),
        ("post-local:lr=2", "one of start_step, every"),
    ],
)
def test_what_is_written_otherwise_is_refused_with_what_there_is(method, words):
    with pytest.raises(ValueError, match=f"is no method: .*{words}"):
        read_method(method)


def test_options_have_the_values_of_the_papers():
    sparse = read_method("sparseloco").options
    assert (sparse.every, sparse.k, sparse.chunk, sparse.bits, sparse.decay) == (
        30,
        64,
        64,
        2,
        0.95,
    )
    demo = read_method("demo").options
    assert (demo.k, demo.chunk, demo.decay) == (32, 64, 0.999)
    changed = read_method("muloco:bits=2,error_feedback=no").options
    assert changed == replace(read_method("muloco").options, bits=2, error_feedback=False)
