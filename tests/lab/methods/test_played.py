"""Methods whose ranks are played in one process: what is averaged, counted and kept."""

import pytest
import torch

import gradsieve as gs
from gradsieve.config import SieveConfig
from gradsieve.lab.methods.played.sieve import PlayedSieve
from gradsieve.lab.methods.played.transport import play_exchanges
from gradsieve.lab.methods.table import read_method, require_playable
from gradsieve.lab.workloads.workload import load_workload

SHAPES = [(64, 96), (128, 40), (100,)]
NUMEL = sum(torch.Size(shape).numel() for shape in SHAPES)


def gradients(ranks, seed):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(ranks)]


def mean_of(all_gradients):
    return [torch.stack(own).mean(dim=0) for own in zip(*all_gradients, strict=True)]


@pytest.mark.parametrize(
    "method",
    [
        "topk:0.1",
        "sieve:density=0.1",
        "sieve:density=0.1,values=float32",
        "sieve:density=0.3,values=bfloat16",
        "sieve:balanced-sigma=1.5,rotation=16,min_numel=50",
        "sieve:balanced-sigma=1.5,rotation=16,min_numel=50,exchange=two-shot",
        "powersgd:3",
    ],
)
def test_what_is_not_sent_now_is_sent_later(method):
    ranks, steps = 3, 4
    compressor = read_method(method).compressor(gradients(1, 0)[0], ranks)
    arrived = [torch.zeros(shape) for shape in SHAPES]
    wanted = [torch.zeros(shape) for shape in SHAPES]
    for step in range(steps):
        given = gradients(ranks, step)
        averages, bits = compressor.average(gradients(ranks, step))
        assert 0 < bits < 32 * NUMEL
        for total, part in zip(arrived, averages, strict=True):
            total += part
        for total, part in zip(wanted, mean_of(given), strict=True):
            total += part
    short = sum(float((a - b).norm()) for a, b in zip(arrived, wanted, strict=True))
    assert 0 < short < 1.1 * sum(float(b.norm()) for b in wanted)
    # With next to nothing new, what was kept arrives.
    for _ in range(60):
        nothing = [[1e-6 * gradient for gradient in own] for own in gradients(ranks, steps)]
        averages, _ = compressor.average(nothing)
        for total, part in zip(arrived, averages, strict=True):
            total += part
    late = sum(float((a - b).norm()) for a, b in zip(arrived, wanted, strict=True))
    assert late < 0.35 * short


def test_steps_before_start_step_send_everything():
    sieve = read_method("sieve:density=0.1,start_step=2").compressor(gradients(1, 0)[0], 2)
    for step in range(4):
        given = gradients(2, step)
        averages, bits = sieve.average(gradients(2, step))
        assert (bits == 32 * NUMEL) == (step < 2)
        if step < 2:
            torch.testing.assert_close(averages, mean_of(given))


def test_a_residual_decays_between_exchanges():
    config = SieveConfig(threshold=gs.Sigma(1.0), min_numel=200)
    kept, faded = (PlayedSieve(gradients(1, 0)[0], 2, config, decay) for decay in (1.0, 0.25))
    for step in range(2):
        averages = [sieve.average(gradients(2, step))[0] for sieve in (kept, faded)]
        assert torch.equal(averages[0][0], averages[1][0]) == (step == 0)
        if step == 0:
            for of_kept, of_faded in zip(kept.sieves, faded.sieves, strict=True):
                pairs = list(zip(of_kept.parameters, of_faded.parameters, strict=True))
                assert len(pairs) == 3
                for whole, quarter in pairs:
                    assert torch.equal(quarter.unrotated_residual(), whole.unrotated_residual() / 4)


@pytest.mark.parametrize(("method", "bits"), [("dense", 32), ("fp16", 16), ("8-bit", 8)])
def test_rounding_counts_its_bits(method, bits):
    given = gradients(2, 0)
    averages, sent = read_method(method).compressor(given[0], 2).average(given)
    assert sent == bits * NUMEL
    for average, mean in zip(averages, mean_of(given), strict=True):
        torch.testing.assert_close(average, mean, rtol=0, atol=0.02 if bits == 8 else 0.002)


def test_powersgd_sends_a_matrix_of_its_rank_exactly():
    left, right = torch.randn(64, 2), torch.randn(2, 96)
    given = [[left @ right], [left @ right]]
    averages, bits = read_method("powersgd:2").compressor(given[0], 2).average(given)
    torch.testing.assert_close(averages[0], left @ right, rtol=1e-3, atol=1e-3)
    assert bits == 32 * 2 * (64 + 96)


@pytest.mark.parametrize(
    "method",
    [
        "none",
        "sieve:x",
        "sieve:density=0.1,sigma=2",
        "sieve:budget=auto",
        "sieve:exchange=dense",
        "sieve:density=x",
        "sieve:0.1",
        "powersgd:4:2",
        "powersgd:0",
        "powersgd:x",
        "topk:0",
        "topk:2",
        "topk:nan",
        "topk:x",
        "sieve:density=0.1,values=int3",
        "local:sigma=2:3",
        "local:every=0,sigma=2",
        "local:every=x,sigma=2",
        "local:delay=21,sigma=2",
        "local:lr=0,sigma=2",
        "local:momentum=1,sigma=2",
        "local:start_step=-1,sigma=2",
        "local:start=late,sigma=2",
        "local:residual_decay=2,sigma=2",
        "local:every=20",
        "local:every=20,fragments=20,sigma=2",
    ],
)
def test_a_method_that_is_none_is_named(method):
    with pytest.raises(ValueError, match=f"{method!r} is no method"):
        require_playable(method, load_workload("mnist_cnn"))


def exchange_without_requests():
    yield from ()
    return ["what is added up"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_exchange_may_need_no_requests(ranks):
    exchanges = [exchange_without_requests() for _ in range(ranks)]
    assert play_exchanges(exchanges) == ["what is added up"]
