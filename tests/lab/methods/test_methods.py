"""How methods are written, and what stands behind each."""

import os

import pytest
import torch
from ranks import run_ranks

from gradsieve.config import SieveConfig
from gradsieve.control.budget import Budget
from gradsieve.control.thresholds import Sigma
from gradsieve.lab.methods.fsdp import blocks_of
from gradsieve.lab.methods.sieve_words import read_config
from gradsieve.lab.methods.table import (
    DISTRIBUTED,
    METHODS,
    NAMED,
    PLAYED,
    read_distributed,
    trains_together,
)
from gradsieve.lab.workloads.workload import load_workload


@pytest.mark.parametrize(
    "method",
    [
        "none",
        "ddp:1",
        "powersgd",
        "powersgd:0",
        "powersgd:x",
        "powersgd:1:1",
        "topk:0.01",
        "local:start_step=5",
        "sieve:x=1",
        "sieve:density=2",
        "sieve:density=0.1,sigma=2",
        "sieve:rotation=x",
        "sieve:budget=all",
        "sieve:exchange=none",
        "hsdp:sigma=2",
        "fsdp-sieve:x=1",
        "fsdp-sieve:node_size=2",
        "fsdp-alone:1",
    ],
)
def test_a_method_that_is_none_is_named(method):
    with pytest.raises(ValueError, match=f"{method!r} is no method"):
        read_distributed(method)


def test_every_method_has_a_name_and_can_be_used():
    assert len(NAMED) == len(METHODS)
    assert NAMED.keys() == DISTRIBUTED.keys() | PLAYED.keys()
    assert {"fp16", "powersgd", "sieve", "local"} <= DISTRIBUTED.keys() & PLAYED.keys()


def test_ranks_that_exchange_nothing_have_no_common_model():
    assert not trains_together("lock-step")
    assert not trains_together("alone")
    assert not trains_together("fsdp-alone")
    for method in (
        "ddp",
        "sieve:sigma=2",
        "hsdp",
        "fsdp-sieve:sigma=2",
        "local:every=5",
        "a method of tomorrow",
    ):
        assert trains_together(method)


def test_options_are_those_of_a_config():
    assert read_config("balanced-sigma=2,rotation=0,values=float32") == SieveConfig(
        threshold=Sigma(2.0, of="balanced"), rotation=0, values="float32"
    )
    assert read_config("") == SieveConfig()
    assert read_config("min_numel=16") == SieveConfig(min_numel=16)
    assert read_config("error_feedback=no,node_size=4") == SieveConfig(
        error_feedback=False, node_size=4
    )
    assert read_config("budget=auto,exchange=two-shot") == SieveConfig(
        threshold=Budget("auto"), exchange="two-shot"
    )


def average_of_ranks():
    for method in ("ddp", "fp16", "powersgd:30", "sieve:fixed=0,values=float32,rotation=0"):
        torch.manual_seed(0)
        model, state, outer, _ = read_distributed(method).prepare(torch.nn.Linear(40, 30))
        assert (state is not None) == method.startswith("sieve")
        assert outer is None
        rank = torch.distributed.get_rank()
        for _ in range(4):
            model.zero_grad()
            model(torch.full((2, 40), 1.0 + rank)).sum().backward()
        # Each output's gradient is the inputs' sum over the batch: 2 · (1 + 2) / 2.
        torch.testing.assert_close(
            model.module.weight.grad, torch.full((30, 40), 3.0), rtol=2e-3, atol=0
        )


def test_every_method_gives_the_ranks_average():
    run_ranks(2, average_of_ranks)


def average_of_nodes():
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    rank = torch.distributed.get_rank()
    # The inputs' sum over a batch of two is 2 · (1 + rank); the average of all or of the node.
    everyone, node = 5.0, 3.0 + 4 * (rank // 2)
    for method, average in (
        ("hsdp", everyone),
        ("fsdp-sieve:fixed=0,values=float32,rotation=0,min_numel=16", everyone),
        ("fsdp-alone", node),
    ):
        layers = torch.nn.Sequential(torch.nn.Linear(40, 31), torch.nn.Linear(31, 5))
        model, state, _, average_ = read_distributed(method).prepare(layers)
        assert (state is not None) == method.startswith("fsdp-sieve")
        for _ in range(3):
            model.zero_grad()
            model[0](torch.full((2, 40), 1.0 + rank)).sum().backward()
            average_()
        weight = model[0].weight
        # 31 rows, cut within the node.
        assert weight.to_local().shape == ((16, 40), (15, 40))[rank % 2]
        torch.testing.assert_close(weight.grad.full_tensor(), torch.full((31, 40), average))


def test_shards_of_a_node_get_the_average_of_all_nodes():
    run_ranks(4, average_of_nodes)


@pytest.mark.parametrize("method", ["hsdp", "fsdp-sieve:sigma=2", "fsdp-alone"])
def test_methods_on_shards_want_nodes_of_several_ranks(method):
    read = read_distributed(method)
    read.require_nodes(4, 2)
    for ranks, ranks_per_node in ((4, 1), (2, 2)):
        with pytest.raises(ValueError, match=rf"^{method.partition(':')[0]} cuts .* 2 nodes or mo"):
            read.require_nodes(ranks, ranks_per_node)
    read_distributed("sieve").require_nodes(4, 1)


def test_a_transformer_is_cut_by_its_layers_and_keeps_its_tied_weight():
    gpt = load_workload("gpt-small").make_model()
    assert blocks_of(gpt) == list(gpt.blocks)
    cnn = load_workload("mnist_cnn").make_model()
    assert blocks_of(cnn) == [cnn.conv1, cnn.conv2, cnn.dense1, cnn.dense2]
