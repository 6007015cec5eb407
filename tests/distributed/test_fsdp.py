"""FSDP2 within nodes and an Averager between them, on two nodes of two ranks."""

import json
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from fsdp import Training, mesh_of, same_on_all_ranks, sharded
from ranks import run_ranks
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard

import gradsieve as gs

EXACT = {"threshold": gs.Fixed(0), "values": "float32"}


def averager(mesh, model, **options):
    group = mesh["replicate"].get_group()
    return gs.Averager(model.named_parameters(), process_group=group, **options)


def trained(mesh, policy=None, *, steps=5, clip=None, accumulate=1, **options):
    """Return the weights after some steps through an Averager, and the Averager."""
    model = sharded(mesh["shard"], **({} if policy is None else {"mp_policy": policy}))
    sieve = averager(mesh, model, **options)
    training = Training(
        model, sieve.average_, clip=clip, accumulate=accumulate, no_sync=sieve.no_sync
    )
    return training.run(steps), sieve


def equals_hsdp():
    """Without pruning it is what FSDP does itself on both dimensions of the mesh."""
    mesh = mesh_of(2, 2)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for policy, accumulate, overlaps in ((None, 2, (False, True)), (half, 1, (True,))):
        model = sharded(mesh, **({} if policy is None else {"mp_policy": policy}))
        hsdp = Training(model, clip=0.1, accumulate=accumulate).run()
        for overlap in overlaps:
            mine, _ = trained(
                mesh, policy, clip=0.1, accumulate=accumulate, overlap=overlap, **EXACT
            )
            torch.testing.assert_close(mine, hsdp, rtol=0, atol=1e-6)


def prunes():
    """Replicas have the same bits, with and without overlap, whatever is sent."""
    mesh = mesh_of(2, 2)
    for options in (
        {"threshold": gs.Sigma(1)},
        {"threshold": gs.Sigma(1), "exchange": "two-shot", "values": "bfloat16"},
        {"threshold": gs.Density(0.05), "rotation": 16, "min_numel": 64},
        {"exchange": "dense"},
    ):
        first, sieve = trained(mesh, **options)
        second, overlapped = trained(mesh, overlap=True, **options)
        assert torch.equal(first, second)
        assert same_on_all_ranks(first)
        assert sieve.last.frame_bytes == overlapped.last.frame_bytes
        if options.get("exchange") != "dense":
            assert 0 < sieve.last.density < 0.5
    # Local shards: each rank keeps the residual of what it holds.
    rank = mesh["shard"].get_local_rank()
    assert sieve.residuals["0.weight"].shape == ((65, 64)[rank], 32)
    assert sieve.residuals["2.weight"].shape == ((1, 0)[rank], 129)


class Root(nn.Module):
    """A layer that FSDP cuts by itself, and one that it cuts with the root."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, inputs):
        return self.outer(self.inner(inputs))


def refuses():
    mesh = mesh_of(2, 2)
    group = mesh["shard"].get_group()
    for other in (None, group):
        with pytest.raises(gs.SieveError, match=r'shards of .*mesh\["replicate"\]\.get_group'):
            gs.Averager(sharded(mesh["shard"]).named_parameters(), process_group=other)
    with pytest.raises(gs.SieveError, match=r"averages its gradients already: .*fully_shard"):
        averager(mesh, sharded(mesh))
    whole_job = dist.init_device_mesh("cpu", (4,))
    with pytest.raises(gs.SieveError, match=r"of a mesh that has such a dimension: mesh = init_"):
        gs.Averager(sharded(whole_job).named_parameters())
    stages = dist.init_device_mesh("cpu", (1, 1, 4), mesh_dim_names=("pp", "replicate", "shard"))
    with pytest.raises(gs.SieveError, match=r"dimensions pp, replicate: that over which the model"):
        gs.Averager(sharded(stages["shard"]).named_parameters())
    with pytest.raises(TypeError, match=r"gs\.Averager\(model\.named_parameters\(\), process_gro"):
        gs.attach(sharded(mesh["shard"]))
    packed = FullyShardedDataParallel(nn.Linear(8, 8), device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"FSDP has packed together; shard it with fully_shard"):
        gs.attach(packed)
    with pytest.raises(gs.SieveError, match=r"flat parameter .*; shard it with fully_shard"):
        gs.Averager(packed.named_parameters(), process_group=mesh["replicate"].get_group())
    # After an evaluation FSDP has gathered what the root holds, and trains other tensors.
    model = Root()
    fully_shard(model.inner, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    with torch.no_grad():
        model(torch.ones(2, 8))
    sieve = averager(mesh, model, **EXACT)
    model(torch.ones(2, 8)).sum().backward()
    with pytest.raises(gs.SieveError, match=r"outer\.weight has no memory .* model\.reshard"):
        sieve.average_()
    # Ranks 0 and 3 are in one row and one column each: no rank can see that by itself.
    crossed = [dist.new_group([0, 3]), dist.new_group([1, 2])][dist.get_rank() in (1, 2)]
    layer = fully_shard(nn.Linear(32, 64), mesh=mesh["shard"])
    sieve = gs.Averager(layer.named_parameters(), process_group=crossed, **EXACT)
    layer(torch.ones(1, 32)).sum().backward()
    with pytest.raises(gs.MismatchError, match=r"shards=shard \d of 2 by S\(0\).*shards=shard"):
        sieve.average_()


def resumes(folder):
    mesh = mesh_of(2, 2)
    options = {"threshold": gs.Sigma(1), "exchange": "two-shot"}
    model = sharded(mesh["shard"])
    sieve = averager(mesh, model, **options)
    training = Training(model, sieve.average_)
    training.run(3)
    gs.checkpoint.save(sieve, folder)
    before = {name: shard.to_local().clone() for name, shard in model.state_dict().items()}
    inner = deepcopy(training.optimizer.state_dict())
    batches = training.generator.get_state()
    expected = training.run(2)

    again = sharded(mesh["shard"])
    for name, shard in again.state_dict().items():
        shard.to_local().copy_(before[name])
    sieve = averager(mesh, again, overlap=True, **options)
    dist.barrier()
    # Weights are equal on all ranks that hold nothing; the shards are told apart by their place.
    other = torch.load(f"{folder}/sieve-rank{dist.get_rank() ^ 1}.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"is of one shard .* this rank holds one shard"):
        sieve.load_state_dict(other)
    states = [torch.load(f"{folder}/sieve-rank{rank}.pt", weights_only=True) for rank in range(4)]
    with pytest.raises(ValueError, match="give reshard the states of one shard at a time"):
        gs.reshard(states, 3)
    assert [state["world_size"] for state in gs.reshard(states[1::2], 3)] == [3, 3, 3]
    gs.checkpoint.load(sieve, folder)
    resumed = Training(again, sieve.average_)
    resumed.optimizer.load_state_dict(inner)
    resumed.generator.set_state(batches)
    assert torch.equal(resumed.run(2), expected)


def records(folder):
    mesh = mesh_of(2, 2)
    model = sharded(mesh["shard"])
    sieve = averager(mesh, model, threshold=gs.Sigma(1))
    recorder = gs.Recorder(sieve, model, folder, histograms_every=1, tensorboard=False)
    training = Training(model, sieve.average_)
    for step in range(2):
        training.run(1)
        recorder.log(loss=step)
    recorder.close()
    dist.barrier()


def all_of(folder):
    equals_hsdp()
    prunes()
    refuses()
    resumes(folder / "states")
    records(folder / "run")


def test_fsdp_between_replicas(tmp_path):
    run_ranks(4, all_of, tmp_path)
    for place, rows in ((tmp_path / "run", 65), (tmp_path / "run" / "rank1", 64)):
        heading, *lines = map(json.loads, (place / "records.jsonl").read_text().splitlines())
        assert heading["parameters"]["0.weight"] == rows * 32
        assert [(line["step"], line["loss"]) for line in lines] == [(0, 0), (1, 1)]
        counted = json.loads((place / "histograms.jsonl").read_text().splitlines()[-1])
        assert counted["ranks"] == 2
        assert "0.weight" in counted["histograms"]["residual"]
