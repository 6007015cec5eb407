"""Local steps between the replicas of an FSDP model: two nodes of two ranks, a shard on each."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from local_steps import average, train
from models import batch, on_every_rank, smaller_pieces
from ranks import run_ranks
from test_outer_resume import through_a_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs


class Uneven(nn.Module):
    """Shards of 21 and 20 rows, and one that is empty on every second rank."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 41)
        self.norm = nn.BatchNorm1d(41)
        self.two = nn.Linear(41, 30)
        self.three = nn.Linear(30, 1)

    def forward(self, x):
        return self.three(self.two(self.norm(self.one(x)).relu()).relu())


def nodes():
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def whole(seed=0):
    torch.manual_seed(seed)
    return Uneven()


def sharded(mesh, seed=0, **options):
    net = whole(seed)
    fully_shard(net.one, mesh=mesh["shard"], **options)
    return fully_shard(net, mesh=mesh["shard"])


def gathered(net):
    """All weights, whole, and the statistics."""
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    return torch.cat([w.detach().flatten() for w in [*weights, net.norm.running_mean]])


def replicas_agree(net, mesh):
    mine = gathered(net)
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine, group=mesh["replicate"].get_group())
    return torch.equal(both[0], both[1])


def adam(net):
    return torch.optim.Adam(net.parameters(), lr=0.01)


def compare_with_ddp():
    smaller_pieces()
    mesh = nodes()
    fixed = {"threshold": gs.Fixed(0.002), "values": "float32", "min_numel": 1}
    for options, is_alike in (
        ({"exchange": "dense"}, True),
        ({"exchange": "gather", **fixed}, True),
        ({"exchange": "two-shot", "threshold": gs.Fixed(0.0), "values": "float32"}, True),
        ({"exchange": "gather", "fragments": 3, "delay": 1, **fixed}, True),
        # Thresholds, levels and bases are those of a shard.
        ({"exchange": "gather", "rotation": 16, "threshold": gs.Sigma(1.0)}, False),
        ({"exchange": "two-shot", "delay": 1, "fragments": 3, "min_numel": 1}, False),
    ):
        options = {"process_group": mesh["replicate"].get_group(), "every": 3} | options
        nets = [
            # Each rank of an FSDP model collects statistics of its own.
            DDP(whole(), process_group=mesh["shard"].get_group(), broadcast_buffers=False),
            sharded(mesh),
        ][0 if is_alike else 1 :]
        for net in nets:
            outer = gs.OuterSync(net, **options)
            train(net, outer, 7, optimizer=adam(net))
            outer.finish()
        assert replicas_agree(net, mesh), options
        if is_alike:
            assert torch.equal(gathered(nets[0].module), gathered(net)), options
            assert outer.last.bits_per_parameter > 0


def meet_in_half_precision():
    mesh = nodes()
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
    )
    net = sharded(mesh, seed=dist.get_rank() // 2, mp_policy=precision)
    outer = gs.OuterSync(
        net, every=3, optimizer=average, process_group=mesh["replicate"].get_group()
    )
    assert replicas_agree(net, mesh), "they begin from the weights of the first node"
    train(net, outer, 4, optimizer=adam(net))
    assert not replicas_agree(net, mesh)
    # FSDP leaves whole weights behind, which the next forward pass would use.
    net.eval()
    with torch.no_grad():
        before = net(batch(9, rank=0))
    outer.finish()
    with torch.no_grad():
        after = net(batch(9, rank=0))
    assert not torch.equal(before, after)
    # The ranks of a node have statistics of their own, replicas have the same.
    both = [torch.empty_like(after) for _ in range(2)]
    dist.all_gather(both, after, group=mesh["replicate"].get_group())
    assert torch.equal(both[0], both[1])
    # Other memory of the shards.
    net.train()
    outer = gs.OuterSync(net, every=2, process_group=mesh["replicate"].get_group())
    saved = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.to_empty(device="cpu")
    net.load_state_dict(saved)
    train(net, outer, 2, optimizer=adam(net))
    assert replicas_agree(net, mesh)
    net.load_state_dict(saved, assign=True)
    with pytest.raises(gs.SieveError, match=r"another tensor .* without assign=True"):
        outer.step()


def resume_shards():
    mesh = nodes()
    options = {
        "every": 5,
        "delay": 3,
        "fragments": 1,
        "threshold": gs.Sigma(1.0),
        "exchange": "gather",
        "process_group": mesh["replicate"].get_group(),
    }

    def begin(**others):
        net = sharded(mesh)
        return net, gs.OuterSync(net, **options | others), adam(net)

    net, outer, optimizer = begin()
    train(net, outer, 17, optimizer=optimizer)
    expected = gathered(net)
    net, outer, optimizer = begin()
    train(net, outer, 11, optimizer=optimizer)
    assert outer.is_exchanging
    saved = through_a_file(outer)[0]
    model, inner = net.state_dict(), optimizer.state_dict()
    net, outer, optimizer = begin()
    net.load_state_dict(model)
    optimizer.load_state_dict(inner)
    outer.load_state_dict(saved)
    train(net, outer, 6, first=11, optimizer=optimizer)
    assert torch.equal(gathered(net), expected)

    place = dist.get_rank() % 2
    mates = [None, None]
    dist.all_gather_object(mates, saved, group=mesh["shard"].get_group())
    words = rf"one shard \(shard {1 - place} of 2.* this rank holds one .*shard {place} of"
    with pytest.raises(ValueError, match=words):
        outer.load_state_dict(mates[1 - place])
    plain = gs.OuterSync(whole(), every=5, delay=3, threshold=gs.Sigma(1.0), exchange="gather")
    with pytest.raises(ValueError, match="this rank holds a whole model"):
        plain.load_state_dict(saved)
    with pytest.raises(ValueError, match="this state is of a whole model"):
        outer.load_state_dict(plain.state_dict())


def exchange_in_a_group_made_by_hand(folder):
    mesh = nodes()
    node, place = divmod(dist.get_rank(), 2)
    store = dist.PrefixStore(str(place), dist.FileStore(f"{folder}/store"))
    by_hand = dist.ProcessGroupGloo(store, node, 2, timedelta(seconds=20))
    net = sharded(mesh, seed=node)
    outer = gs.OuterSync(
        net, every=3, threshold=gs.Sigma(1.0), exchange="gather", process_group=by_hand
    )
    assert replicas_agree(net, mesh), "newcomers take the shards of the first node"
    file = gs.checkpoint.save(outer, folder)
    assert file.name == f"sieve-replica{node}-rank{dist.get_rank()}.pt"
    train(net, outer, 6, optimizer=adam(net))
    outer.finish()
    assert replicas_agree(net, mesh)


def refuse_what_cannot_work():
    mesh = nodes()
    net, replicas = sharded(mesh), mesh["replicate"].get_group()
    with pytest.raises(gs.SieveError, match=r"different shards .* process_group=mesh\[\"replicate"):
        gs.OuterSync(net)
    with pytest.raises(gs.SieveError, match=r"is replicated over ranks .* by FSDP"):
        gs.OuterSync(fully_shard(nn.Linear(20, 20), mesh=mesh), process_group=replicas)
    with pytest.raises(ValueError, match="shards of a parameter would be exchanged at different"):
        gs.OuterSync(net, every=(2, 9), process_group=replicas)
    assert on_every_rank(True)


def test_shards_are_exchanged_as_what_ddp_has_whole():
    run_ranks(4, compare_with_ddp)


def test_shards_meet_resume_and_are_refused_in_words(tmp_path):
    run_ranks(4, several, str(tmp_path))


def several(folder):
    meet_in_half_precision()
    resume_shards()
    exchange_in_a_group_made_by_hand(folder)
    refuse_what_cannot_work()
