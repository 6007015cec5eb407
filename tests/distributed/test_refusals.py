"""What the sieve cannot train is refused at `attach`, by name; what only looks like it works."""

import pytest
import torch
import torch.distributed as dist
from local_steps import average, exact
from models import Net, batch, build, on_every_rank, same_on_all_ranks, train
from ranks import run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs

SETTINGS = {"threshold": gs.Density(0.1), "min_numel": 100, "exchange": "gather"}


class Odd(nn.Module):
    """One parameter of an odd dtype beside a usual one."""

    def __init__(self, dtype, trained=True):
        super().__init__()
        self.one = nn.Linear(20, 5)
        odd = torch.zeros(16, 16).to(dtype)
        self.odd = nn.Parameter(odd, requires_grad=trained)

    def forward(self, x):
        return self.one(x)


class Words(nn.Module):
    def __init__(self, kind=nn.EmbeddingBag, tied=False):
        super().__init__()
        self.out = nn.Linear(20, 200, bias=False)
        self.words = nn.ModuleDict({"table": kind(200, 20, sparse=True)})
        if tied:
            self.words["table"].weight = self.out.weight

    def forward(self, x):
        found = self.words["table"](x.abs().long())
        return self.out(found) if found.dim() == 2 else found


ODD = [torch.complex64, torch.complex128, torch.complex32, torch.float64, torch.float8_e4m3fn]
UNKNOWN_TO_GLOO = [torch.complex32, torch.float8_e4m3fn]
"""DDP itself cannot broadcast them."""


def dtypes():
    for dtype in ODD:
        name = str(dtype).removeprefix("torch.")
        words = f"parameter odd is torch.{name}; the sieve takes float32, float16 and bfloat16"
        if dtype not in UNKNOWN_TO_GLOO:
            with pytest.raises(gs.SieveError, match=words):
                gs.attach(DDP(Odd(dtype)))
            frozen = DDP(Odd(dtype, trained=False))
            gs.attach(frozen, **SETTINGS)
            train(frozen, 1)
        with pytest.raises(gs.SieveError, match=words):
            gs.SieveState().bind(Odd(dtype))
        with pytest.raises(gs.SieveError, match=words):
            gs.OuterSync(Odd(dtype))
        outer = gs.OuterSync(Odd(dtype, trained=False), **exact())
        assert len(outer.state.sieve.parameters.states) == 2
        ignored = Odd(dtype)
        DDP._set_params_and_buffers_to_ignore_for_model(ignored, ["odd"])
        gs.attach(DDP(ignored))
    for dtype in (torch.complex64, torch.float64):
        model = DDP(Odd(dtype), find_unused_parameters=True)
        model.register_comm_hook(gs.SieveState(**SETTINGS), gs.sieve_hook)
        words = r"a parameter of shape \[16, 16\] is " + str(dtype)
        with pytest.raises(gs.SieveError, match=words):
            train(model, 1)


def sparse_tables():
    for kind in (nn.Embedding, nn.EmbeddingBag):
        words = rf"parameter words\.table\.weight .* module words\.table with {kind.__name__}\("
        with pytest.raises(gs.SieveError, match=words):
            gs.attach(DDP(Words(kind)))
    with pytest.raises(gs.SieveError, match=r"parameter out\.weight .* module words\.table"):
        gs.attach(DDP(Words(tied=True)))
    with pytest.raises(gs.SieveError, match=r"parameter weight .* make module itself with"):
        gs.attach(DDP(nn.Embedding(10, 4, sparse=True)))
    frozen = Words()
    frozen.words.requires_grad_(False)
    gs.attach(DDP(frozen))
    # Local steps read weights, not gradients.
    net = Words(nn.EmbeddingBag)
    outer = gs.OuterSync(net, every=2, optimizer=average, **exact())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        assert net.words["table"].weight.grad.is_sparse
        optimizer.step()
        outer.step()
    assert same_on_all_ranks(net)


def other_wrappers():
    ddp = DDP(Net())
    with pytest.raises(TypeError, match=r"attach before torch\.compile: sieve = gs\.attach\(ddp\)"):
        gs.attach(torch.compile(ddp))
    with pytest.raises(TypeError, match=r"wrap and attach before torch\.compile: ddp = DDP\("):
        gs.attach(torch.compile(Net()))
    with pytest.raises(TypeError, match=r"DDP\(model\.module\)"):
        gs.attach(nn.DataParallel(Net()))
    with pytest.raises(TypeError, match=r"got Net; wrap the model first: model = DDP\(model\)"):
        gs.attach(Net())
    with pytest.raises(TypeError, match="got NoneType"):
        gs.attach(None)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = fully_shard(Net(), mesh=mesh)
    partly = Net()
    fully_shard(partly.one, mesh=mesh)
    for model in (sharded, partly, torch.compile(sharded)):
        with pytest.raises(TypeError, match=r"FSDP has cut its parameters.*Averager") as found:
            gs.attach(model)
        assert "DDP(" not in str(found.value)
        with pytest.raises(gs.SieveError, match="hold different shards of parameter one"):
            gs.OuterSync(model)
    # The attached one may be compiled; what is compiled hides no DDP model from local steps.
    gs.attach(ddp, **SETTINGS)
    compiled = torch.compile(ddp, backend="eager")
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(2):
        compiled(batch(step)).square().mean().backward()
        optimizer.step()
    assert same_on_all_ranks(ddp)
    with pytest.raises(gs.SieveError, match="averages gradients over ranks"):
        gs.OuterSync(torch.compile(DDP(Net())))


def joins():
    rank = dist.get_rank()
    for steps in (1, rank):
        model = build()
        state = gs.attach(model, **SETTINGS)
        # A rank without inputs answers the others' first step.
        with (
            pytest.raises(gs.SieveError, match="divides by the ranks that still have inputs"),
            model.join(divide_by_initial_world_size=False),
        ):
            train(model, steps)
        assert on_every_rank(state.step == 0)
    model = build()
    state = gs.attach(model, **SETTINGS)
    with model.join(divide_by_initial_world_size=False, enable=False):
        train(model, 1)
    assert state.step == 1
    model = build()
    state = gs.attach(model, **SETTINGS)
    with model.join():
        train(model, 1 + rank)
    assert state.step == 2
    assert same_on_all_ranks(model)


def refuse_all():
    dtypes()
    sparse_tables()
    other_wrappers()
    joins()


def test_what_cannot_be_trained_rightly_is_refused_by_name():
    run_ranks(2, refuse_all)
