"""Dense exchanges are torch's own, to the bit."""

import torch
from models import build, same_on_all_ranks, train, weights
from ranks import run_ranks
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    fp16_compress_hook,
)

import gradsieve as gs


def train_beside_torch():
    outcomes = []
    for exchange, hook in (("dense", allreduce_hook), ("dense-fp16", fp16_compress_hook)):
        for options in ({}, {"gradient_as_bucket_view": True}):
            theirs, ours = build(**options), build(**options)
            theirs.register_comm_hook(None, hook)
            state = gs.attach(ours, threshold=gs.Sigma(2.0), exchange=exchange)
            train(theirs, 4)
            train(ours, 4)
            assert state.last.exchange == exchange
            assert torch.equal(weights(ours), weights(theirs)), (exchange, options)
            assert same_on_all_ranks(ours)
            outcomes.append(weights(ours))
    assert not torch.equal(outcomes[0], outcomes[-1]), "float16 rounds"


def test_dense_exchanges_give_the_bits_of_torch_s_hooks():
    """A third of a float rounds."""
    run_ranks(3, train_beside_torch)
