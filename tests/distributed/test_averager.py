"""An Averager in a loop without DDP, on two ranks."""

import pytest
import torch
import torch.distributed as dist
from averaging import EXACT, PRUNED, fresh, train
from models import batch, build, on_every_rank, same_on_all_ranks, weights
from models import train as train_ddp
from ranks import run_ranks
from torch import nn

import gradsieve as gs


def equals_ddp():
    ddp = build()
    train_ddp(ddp, 4)
    model = fresh()
    sieve = gs.Averager(model.parameters(), **EXACT)
    torch.testing.assert_close(train(model, sieve.average_, 4), weights(ddp))
    assert list(sieve.residuals) == [str(number) for number in range(6)]
    # The same buckets and policies as with a hook give the same bits.
    hooked = build(bucket_cap_mb=25)
    state = gs.attach(hooked, **PRUNED)
    train_ddp(hooked, 4)
    for overlap in (False, True):
        model = fresh()
        sieve = gs.Averager(model.named_parameters(), overlap=overlap, **PRUNED)
        assert torch.equal(train(model, sieve.average_, 4), weights(hooked))
        assert (sieve.step, sieve.last.densities) == (4, state.last.densities)
        assert {n: r.tolist() for n, r in sieve.residuals.items()} == {
            n: r.tolist() for n, r in state.residuals.items()
        }
        # Whole parameters take a few bytes more or less, depending on what lies before them.
        assert sieve.totals.frame_bytes == pytest.approx(state.totals.frame_bytes, rel=0.02)


def loses_nothing():
    """What all ranks have computed is in the averages or in their residuals."""
    model = fresh()
    sieve = gs.Averager(model.named_parameters(), values="float32", threshold=gs.Sigma(1))
    computed, averaged = torch.zeros_like(weights(model)), torch.zeros_like(weights(model))
    for step in range(3):
        model.zero_grad()
        model(batch(step)).square().mean().backward()
        computed += torch.cat([p.grad.flatten() for p in model.parameters()])
        sieve.average_()
        averaged += torch.cat([p.grad.flatten() for p in model.parameters()])
    kept = torch.cat([residual.flatten() for residual in sieve.residuals.values()])
    for tensor in (computed, kept):
        dist.all_reduce(tensor)
    torch.testing.assert_close(averaged * 2 + kept, computed)


class Branches(nn.Module):
    """Rank 0 takes one branch and rank 1 the other; nobody takes the third."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(20, 40, bias=False) for _ in range(3))
        self.last = nn.Linear(40, 5)

    def forward(self, inputs):
        return self.last(self.branches[dist.get_rank()](inputs))


def takes_missing_gradients():
    model = fresh(Branches)
    start = model.branches[2].weight.detach().clone()
    for overlap in (False, True):
        sieve = gs.Averager(model.named_parameters(), overlap=overlap, **PRUNED)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        for step in range(4):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            sieve.average_()
            optimizer.step()
            assert model.branches[2].weight.grad is None
            assert model.branches[1 - dist.get_rank()].weight.grad.any()
        assert same_on_all_ranks(model)
        assert torch.equal(model.branches[2].weight, start)
    model.zero_grad()
    with pytest.raises(gs.SieveError, match="no parameter has a gradient on any rank"):
        sieve.average_()


def takes_lists():
    model = fresh()
    model.two.requires_grad_(False)
    ranks = dist.get_world_size()
    sieve = gs.Averager([*model.parameters()], **EXACT)
    rank, shapes = dist.get_rank(), [p.shape for p in model.parameters()]
    gradients = [torch.full(shape, float(rank)) for shape in shapes]
    gradients[2] = gradients[3] = None
    if rank == 0:
        gradients[0] = None
    record = sieve.average_(gradients)
    assert record is sieve.last
    assert record.step == 0
    assert gradients[2] is None
    assert gradients[0].shape == shapes[0]
    assert all(bool((g == (ranks - 1) / 2).all()) for g in gradients if g is not None)
    assert model.one.weight.grad is None
    # Tensors that no backward pass reaches.
    state = gs.Averager([("a", torch.zeros(50, 60)), ("b", torch.zeros(3))], **PRUNED)
    state.average_([torch.randn(50, 60), torch.ones(3)])
    assert list(state.residuals) == ["a", "b"]
    for wrong, message in (
        ([torch.ones(3)], "one for each of the 2 parameters"),
        ([torch.ones(3), torch.ones(3)], r"gradient of parameter a is \[3\], the parameter \[50"),
    ):
        with pytest.raises(ValueError, match=message):
            state.average_(wrong)
    for given in (torch.ones(3), (torch.ones(50, 60), None)):
        with pytest.raises(TypeError, match="gradients must be a list, got"):
            state.average_(given)
    pair = gs.Averager([("a", torch.zeros(4)), ("b", torch.zeros(4))], **PRUNED)
    shared = torch.ones(4)
    with pytest.raises(ValueError, match="gradients of parameters a and b share memory"):
        pair.average_([shared, shared])
    with pytest.raises(ValueError, match=r"parameter b is expanded, .* give gradient\.contiguous"):
        pair.average_([shared, torch.ones(1).expand(4)])
    with pytest.raises(gs.SieveError, match="parameter a has a sparse gradient"):
        state.average_([torch.zeros(50, 60).to_sparse(), None])
    model.two.requires_grad_(True)
    with pytest.raises(gs.SieveError, match=r"parameter two\.weight is trained now|parameter 2 is"):
        sieve.average_(gradients)


def fails_half_way(model):
    hidden = model.one(batch(4)).relu()
    hidden.register_hook(lambda gradient: 1 / 0)
    model.three(model.two(hidden).relu()).square().mean().backward()


def accumulates():
    """One gradient of two batches, sent during the second backward pass."""
    model, twice = fresh(), fresh()
    sieve = gs.Averager(model.parameters(), overlap=True, **PRUNED)
    other = gs.Averager(twice.parameters(), **PRUNED)
    for step in range(2):
        with sieve.no_sync():
            model(batch(step)).square().mean().backward()
        model(batch(step + 9)).square().mean().backward()
        assert sieve.step == step
        sieve.average_()
        for number in (step, step + 9):
            twice(batch(number)).square().mean().backward()
        other.average_()
    assert all(
        torch.equal(p.grad, q.grad)
        for p, q in zip(model.parameters(), twice.parameters(), strict=True)
    )
    # A second backward pass that was not announced.
    kept = {name: residual.clone() for name, residual in sieve.residuals.items()}
    model.zero_grad()
    model(batch(3)).square().mean().backward()
    with pytest.raises(gs.SieveError, match=r"second gradient before average_, .*no_sync"):
        model(batch(4)).square().mean().backward()
    model.zero_grad()
    # What was sent has returned to the residual.
    assert any(not torch.equal(kept[name], r) for name, r in sieve.residuals.items())
    train(model, sieve.average_, 2)
    assert sieve.step == 4
    # A backward pass that failed on all ranks is noticed by the next, which begins anew.
    with pytest.raises(ZeroDivisionError):
        fails_half_way(model)
    with pytest.raises(gs.SieveError, match="second gradient"):
        model(batch(5)).square().mean().backward()
    train(model, sieve.average_, 2)
    assert (sieve.step, on_every_rank(same_on_all_ranks(model))) == (6, True)
    with pytest.raises(gs.SieveError, match="no gradient was computed since average_ was called"):
        sieve.average_()
    with pytest.raises(ValueError, match="call average_"):
        sieve.average_([p.grad for p in model.parameters()])


def guards_what_is_under_way():
    """Between a backward pass that has sent gradients and average_, nothing else may use them."""
    model = fresh()
    sieve = gs.Averager(model.named_parameters(), overlap=True, **PRUNED)
    train(model, sieve.average_, 1)
    model.zero_grad()
    model(batch(1)).square().mean().backward()
    for use in (sieve.state_dict, lambda: sieve.load_state_dict({})):
        with pytest.raises(gs.SieveError, match="between a backward pass and average_"):
            use()
    sieve.average_()
    # What is added after a gradient was sent would be overwritten.
    model.zero_grad()
    model(batch(2)).square().mean().backward()
    with sieve.no_sync(), pytest.raises(gs.SieveError, match="second gradient"):
        model(batch(3)).square().mean().backward()
    train(model, sieve.average_, 1)
    # An error of the user's own function comes after the averages are in their place.
    sieve.on_step = lambda record: 1 / 0
    model.zero_grad()
    model(batch(5)).square().mean().backward()
    with pytest.raises(ZeroDivisionError):
        sieve.average_()
    mine = torch.cat([p.grad.flatten() for p in model.parameters()])
    others = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(others, mine)
    assert all(torch.equal(mine, other) for other in others)


def scaled():
    """The scale of the loss does not change what is learned; a step with inf is skipped by all."""
    model = fresh()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1)
    sieve = gs.Averager(model.named_parameters(), scaler=scaler, **PRUNED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(model(batch(step)).square().mean()).backward()
        if step == 1 and dist.get_rank() == 1:
            model.one.weight.grad[0, 0] = torch.inf
        sieve.average_()
        scaler.step(optimizer)
        scaler.update()
    assert same_on_all_ranks(model)
    assert weights(model).isfinite().all()
    assert sieve.last.loss_scale == 256.0
    assert all(residual.isfinite().all() for residual in sieve.residuals.values())


def mixed_dtypes():
    model = fresh()
    model.two.bfloat16()
    sieve = gs.Averager(model.named_parameters(), **PRUNED)
    gradients = [torch.ones_like(p) for p in model.parameters()]
    sieve.average_(gradients)
    assert [g.dtype for g in gradients] == [p.dtype for p in model.parameters()]
    model.float()
    with pytest.raises(gs.SieveError, match=r"two\.weight was .*bfloat16 .* is .*float32"):
        sieve.average_()


def all_of():
    equals_ddp()
    loses_nothing()
    takes_missing_gradients()
    takes_lists()
    accumulates()
    guards_what_is_under_way()
    scaled()
    mixed_dtypes()


def test_an_averager():
    run_ranks(2, all_of)


def replicated():
    """A module of replicate takes DDP's hooks, and makes its DDP model later."""
    from torch.distributed._composable import replicate

    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group = pairs[dist.get_rank() // 2]
    model = replicate(fresh(), process_group=group)
    sieve = gs.attach(model, **PRUNED)
    assert sieve.engine.groups.group is group
    with pytest.raises(gs.SieveError, match="has the communication hook sieve_hook already"):
        gs.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    with pytest.raises(gs.SieveError, match="attach right after replicate"):
        gs.attach(model)
    mine = weights(model)
    found = [torch.empty_like(mine) for _ in range(4)]
    dist.all_gather(found, mine)
    assert sorted(sieve.residuals) == sorted(name for name, _ in model.named_parameters())
    assert sieve.totals.steps == 3
    return [torch.equal(mine, other) for other in found]


def test_a_replicated_module():
    alike = run_ranks(4, replicated)
    assert alike == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
