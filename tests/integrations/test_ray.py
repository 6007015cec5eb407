"""The recipe for Ray Train on two workers. Ray starts slowly, so that the runs are few."""

import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ray.train.torch", reason="needs ray[train]: make test-integrations")

import ray
import torch
import torch.distributed as dist
from ray import train
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

import gradsieve as gs

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "integrations" / "ray_train.py"
# The workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def ray_folder(monkeypatch):
    """A folder for the logs and sockets of Ray, which need a short path."""
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield folder


@pytest.fixture
def cluster(ray_folder):
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _temp_dir=ray_folder,
    )
    yield
    ray.shutdown()


def test_the_script_runs(tmp_path):
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "step 40\n" in ran.stdout
    assert float(ran.stdout.split("sieve/bits_per_parameter")[1].split()[0]) < 2
    assert "saved: model.pt sieve-rank0.pt sieve-rank1.pt" in ran.stdout


def fit(work, folder, **config):
    return TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(name="checked", storage_path=str(folder)),
    ).fit()


def saved_in(checkpoint):
    """The files of a checkpoint, loaded."""
    with checkpoint.as_directory() as folder:
        return {f.name: torch.load(f, weights_only=True) for f in Path(folder).iterdir()}


def batch(step):
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    return torch.randn(16, 64, generator=generator)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))


def advance(model, optimizer, first, steps, outer=None):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        (model(batch(step)) - batch(step)).square().mean().backward()
        optimizer.step()
        if outer is not None:
            outer.step()


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def train_exactly():
    plain, pruned = prepare_model(network()), prepare_model(network())
    sieve = gs.attach(pruned, threshold=gs.Fixed(0), values="float32")
    for model in (plain, pruned):
        advance(model, torch.optim.SGD(model.parameters(), lr=0.1), 0, 8)
    assert sieve.step == 8
    torch.testing.assert_close(weights(pruned), weights(plain), atol=1e-6, rtol=0)


def resume_local_steps():
    """Saved in the middle of a phase."""
    rank = train.get_context().get_world_rank()
    net = prepare_model(network(), parallel_strategy=None)
    optimizer = torch.optim.AdamW(net.parameters())
    outer = gs.OuterSync(net, every=4, threshold=gs.Sigma(1))
    advance(net, optimizer, 0, 6, outer)
    with tempfile.TemporaryDirectory() as folder:
        gs.checkpoint.save(outer, folder)
        own = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(own, f"{folder}/rank{rank}.pt")
        train.report({}, checkpoint=Checkpoint.from_directory(folder))
    advance(net, optimizer, 6, 6, outer)
    outer.finish()
    everyone = [None] * 2
    dist.all_gather_object(everyone, weights(net))
    torch.testing.assert_close(everyone[0], everyone[1], atol=0, rtol=0)

    resumed = prepare_model(network(), parallel_strategy=None)
    optimizer = torch.optim.AdamW(resumed.parameters())
    outer = gs.OuterSync(resumed, every=4, threshold=gs.Sigma(1))
    with train.get_checkpoint().as_directory() as folder:
        saved = torch.load(f"{folder}/rank{rank}.pt", weights_only=True)
        resumed.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        gs.checkpoint.load(outer, folder)
    advance(resumed, optimizer, 6, 6, outer)
    outer.finish()
    torch.testing.assert_close(weights(resumed), weights(net), atol=0, rtol=0)


def run_example_in_parts(work):
    """A run that never stops, and one that starts, and starts again."""
    work({"steps": 40})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "get_checkpoint", lambda: None)
        work({"steps": 20})
    work({"steps": 20})


def on_each_worker(config):
    run_example_in_parts(config["example"])
    train_exactly()
    resume_local_steps()


def test_the_recipe_is_exact_and_resumes_to_the_bit(cluster, tmp_path):
    example = runpy.run_path(str(EXAMPLE), run_name="example")["work"]
    reported = fit(on_each_worker, tmp_path, example=example).best_checkpoints
    assert [metrics.get("step") for _, metrics in reported] == [20, 40, 20, 40, None]
    never_stopped, resumed = saved_in(reported[1][0]), saved_in(reported[3][0])
    exact = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(resumed["model.pt"], never_stopped["model.pt"], **exact)
    for name in ("sieve-rank0.pt", "sieve-rank1.pt"):
        for parameter, kept in never_stopped[name]["parameters"].items():
            ours = resumed[name]["parameters"][parameter]["residual"]
            torch.testing.assert_close(ours, kept["residual"], **exact)
    assert reported[3][1]["loss"] < reported[2][1]["loss"]
    assert 0 < reported[3][1]["sieve/density"] < 1
