"""Local steps as they are played in one process are those of real ranks."""

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import nn
from torch.nn import functional

import gradsieve as gs
from gradsieve.bucket import plan
from gradsieve.lab.methods.table import read_method
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import Judged, Workload, cross_entropy

RANKS, STEPS = 3, 13
METHOD = "local:every=2,density=0.1,lr=1,momentum=0.5,ramp=0,min_numel=100,exchange=two-shot"
SETTINGS = {
    "every": 2,
    "threshold": gs.Density(0.1),
    "min_numel": 100,
    "optimizer": lambda weights: gs.Nesterov(weights, lr=1.0, momentum=0.5, ramp=0),
}


class Layers(nn.Module):
    """Its parameters have the names of played ones, by which ranks divide them."""

    def __init__(self):
        super().__init__()
        for number, shape in enumerate([(64, 48), (64,), (2, 64)]):
            self.register_parameter(str(number), nn.Parameter(torch.randn(shape) / 8))

    def forward(self, inputs):
        first, bias, last = self.parameters()
        return functional.linear(functional.linear(inputs, first, bias).relu(), last)


def batches(rank, world_size, seed):
    generator = torch.Generator().manual_seed(100 * seed + rank)
    while True:
        inputs = torch.randn(8, 48, generator=generator)
        yield inputs, (inputs.sum(dim=1) > 0).long()


TINY = Workload(
    name="tiny",
    make_model=Layers,
    make_optimizer=lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr),
    learning_rate=1e-2,
    batches=batches,
    metric=lambda model, rank, ranks: Judged(0.0, 1),
    metric_name="test accuracy",
    higher_is_better=True,
)


@pytest.fixture(autouse=True)
def small_pieces_on_one_thread(monkeypatch):
    """So that the parameters are divided among the ranks, as large ones are."""
    monkeypatch.setattr(plan, "SMALLEST_PIECE", 100)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_and_optimizer():
    torch.manual_seed(0)
    model = TINY.make_model()
    return model, TINY.make_optimizer(model, TINY.learning_rate)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def real_rank(options):
    plan.SMALLEST_PIECE = 100
    model, optimizer = model_and_optimizer()
    outer = gs.OuterSync(model, **SETTINGS | {"exchange": "two-shot"} | options)
    data = batches(dist.get_rank(), RANKS, 0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(model, *next(data)).backward()
        optimizer.step()
        outer.step()
    before = weights(model)
    outer.finish()
    return before.tolist(), weights(model).tolist()


@pytest.mark.parametrize("rotation", [0, 16])
def test_played_ranks_do_what_real_ones_do(rotation):
    outcomes = run_ranks(RANKS, real_rank, {"rotation": rotation})
    real = [[torch.tensor(numbers) for numbers in outcome] for outcome in outcomes]
    model, _ = model_and_optimizer()
    replica = Replica(TINY, model, TINY.learning_rate, STEPS)
    played = read_method(f"{METHOD},rotation={rotation}").play(replica, RANKS)
    data = [batches(rank, RANKS, 0) for rank in range(RANKS)]
    for _ in range(STEPS):
        played.step(data)
    for rank, (before, _) in zip(played.ranks, real, strict=True):
        torch.testing.assert_close(weights(rank.replica.model), before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(real[0][0], real[1][0]), "ranks keep their own"
    played.finish()
    for _, after in real:
        torch.testing.assert_close(weights(played.model), after, rtol=1e-4, atol=1e-5)


def test_ranks_that_hold_nothing_are_alike_after_an_exchange():
    model, _ = model_and_optimizer()
    replica = Replica(TINY, model, TINY.learning_rate, STEPS)
    played = read_method(f"{METHOD},rotation=16,holds=no").play(replica, RANKS)
    data = [batches(rank, RANKS, 0) for rank in range(RANKS)]
    for _ in range(6):
        played.step(data)
    first, *others = (weights(rank.replica.model) for rank in played.ranks)
    assert all(torch.equal(first, other) for other in others)
