"""A default dtype or device that the user sets changes nothing of what the sieve does."""

import tempfile

import torch
import torch.distributed as dist
from local_steps import average
from models import Net, smaller_pieces, weights
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs

SETTINGS = {"threshold": gs.Density(0.1), "min_numel": 100}
CHOICES = [
    {"values": "float32", "rotation": 16},
    {"values": "bfloat16", "exchange": "two-shot"},
    {"exchange": "hierarchical", "node_size": 2},
]
STEPS = 3


def plain():
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def doubles():
    torch.set_default_dtype(torch.float64)


def nowhere():
    torch.set_default_device("meta")


def inputs(step):
    generator = torch.Generator("cpu").manual_seed(1000 * step + dist.get_rank())
    return torch.randn(8, 20, generator=generator, dtype=torch.float32, device="cpu")


def trained(model, steps, after_step=lambda: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        optimizer.step()
        after_step()


def net():
    plain()
    torch.manual_seed(0)
    return Net()


def synchronous(before, after, settings):
    """Weights and residuals, with the defaults set before and after `attach`."""
    model = DDP(net(), bucket_cap_mb=0.005)
    with tempfile.TemporaryDirectory() as directory:
        before()
        state = gs.attach(model, **(SETTINGS | settings))
        recorder = gs.Recorder(state, model, directory, histograms_every=1, tensorboard=False)
        after()
        trained(model, STEPS, lambda: recorder.log(loss=1.0))
        state.load_state_dict(state.state_dict())
        kept = [*state.residuals.values(), *state.owned_residuals.values()]
        recorder.close()
    plain()
    assert all(residual.dtype is torch.float32 for residual in kept)
    return weights(model), *kept


def apart(before, after):
    model = net()
    before()
    outer = gs.OuterSync(model, every=2, delay=1, optimizer=average, **SETTINGS)
    after()
    trained(model, STEPS, outer.step)
    outer.finish()
    outer.load_state_dict(outer.state_dict())
    kept = outer.state.residuals.values()
    plain()
    return weights(model), *kept


def every_default():
    smaller_pieces()
    runs = [lambda b, a, c=choice: synchronous(b, a, c) for choice in CHOICES]
    for number, run in enumerate([*runs, apart]):
        expected = run(plain, plain)
        for before, after in [(doubles, doubles), (plain, doubles), (nowhere, nowhere)]:
            found = run(before, after)
            assert len(found) == len(expected) > 1
            for mine, theirs in zip(found, expected, strict=True):
                assert torch.equal(mine, theirs), (number, before.__name__, after.__name__)


def test_a_default_dtype_or_device_changes_nothing():
    run_ranks(2, every_default)
