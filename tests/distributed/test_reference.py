"""The package computes what the page of plain torch, examples/reference.py, says."""

import importlib.util
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs

# Three ranks: the sum of two is the same in any order.
RANKS, STEPS, K, MIN_NUMEL = 3, 6, 2.0, 100

path = Path(__file__).parents[2] / "examples" / "reference.py"
specification = importlib.util.spec_from_file_location("reference", path)
reference = importlib.util.module_from_spec(specification)
specification.loader.exec_module(reference)


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 5)
    )


def optimizer_of(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def batch(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    inputs = torch.randn(16, 1, 12, 12, generator=generator)
    return inputs, torch.randint(5, (16,), generator=generator)


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def by_the_package():
    """For each step this rank's record and residuals by name; averages and parameters."""
    rank, model = dist.get_rank(), DDP(build())
    sieve = gs.attach(
        model,
        threshold=gs.Sigma(K),
        values="float32",
        exchange="gather",
        min_numel=MIN_NUMEL,
    )
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs, labels = batch(step, rank)
        F.cross_entropy(model(inputs), labels).backward()
        averages = copies(p.grad for p in model.parameters())
        optimizer.step()
        yield sieve.last, sieve.residuals, averages, copies(model.parameters())


def by_the_page():
    """For each step all ranks' survivors and residuals; averages and parameters."""
    model = build()
    parameters, optimizer = list(model.parameters()), optimizer_of(model)
    residuals = [[torch.zeros_like(p) for p in parameters] for _ in range(RANKS)]
    for step in range(STEPS):
        gradients = [reference.gradient(model, *batch(step, rank)) for rank in range(RANKS)]
        survivors = [
            reference.select(mine, kept, K, MIN_NUMEL)
            for mine, kept in zip(gradients, residuals, strict=True)
        ]
        frames = reference.exchange([reference.encode(mine) for mine in survivors])
        averages = reference.decode(frames, parameters)
        reference.step(optimizer, parameters, averages)
        yield survivors, residuals, averages, parameters


def compare():
    rank = dist.get_rank()
    names = [name for name, _ in build().named_parameters()]
    for package, page in zip(by_the_package(), by_the_page(), strict=True):
        record, residuals, averages, parameters = package
        survivors, kept, wanted_averages, wanted_parameters = page
        densities = {
            name: len(places) / parameter.numel()
            for name, parameter, (places, _) in zip(names, parameters, survivors[rank], strict=True)
            if parameter.numel() >= MIN_NUMEL
        }
        assert record.densities == densities
        assert all(0 < density < 0.5 for density in densities.values())
        # Bit for bit: the survivors left the residual, and were averaged in the same order.
        for number, name in enumerate(names):
            assert torch.equal(residuals[name], kept[rank][number]), (record.step, name)
            assert torch.equal(averages[number], wanted_averages[number]), (record.step, name)
            assert torch.equal(parameters[number], wanted_parameters[number]), (record.step, name)
    return record.step


def test_the_package_computes_what_the_page_says():
    assert run_ranks(RANKS, compare) == [STEPS - 1] * RANKS
