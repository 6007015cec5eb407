"""The callback in a Trainer on two ranks, against the plain Trainer and against itself resumed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers", reason="needs transformers: make test-integrations")
pytest.importorskip("peft", reason="needs peft: make test-integrations")

import torch
import torch.distributed as dist
import trainers
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel as DDP
from trainers import gpt2, llama, lora, losses_of, trained, trainer, weights_of
from transformers import TrainerCallback

import gradsieve as gs
from gradsieve.integrations.local_steps import train_locally
from gradsieve.integrations.running_trainer import ddp_of
from gradsieve.integrations.transformers import SieveCallback

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "integrations"
EXACT = {"threshold": gs.Fixed(0), "values": "float32"}
SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
LOCAL = {"average_tokens_across_devices": False}


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Give ranks time to import the framework on a busy machine."""
    monkeypatch.setattr("ranks.SECONDS", 180)


def alike(made):
    """Whether all ranks have the weights of this one."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, weights_of(made))
    return all(torch.equal(everyone[0], other) for other in everyone)


# Exactness.

TRAINED = {
    "gpt2": (gpt2, {}),
    "llama": (llama, {}),
    "accumulated and clipped": (gpt2, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.3}),
    "bfloat16": (gpt2, {"bf16": True}),
    "checkpointed activations": (gpt2, {"gradient_checkpointing": True}),
}
WRAPPED = {
    "scaled": (gpt2, {"scaled": True, "max_grad_norm": 0}),
    "compiled": (gpt2, {"torch_compile": True, "torch_compile_backend": "eager"}),
}


def against_plain(folder, cases):
    for name, (make, options) in cases.items():
        uncompiled = {name: n for name, n in options.items() if "compile" not in name}
        plain = trained(folder, make(), **uncompiled)
        callback = SieveCallback(**EXACT)
        ours = trained(folder, make(), callback, **options)
        assert callback.sieve.step == ours.state.global_step == 6, name
        assert callback.sieve.last.loss_scale == (2**16 if "scaled" in options else 1), name
        torch.testing.assert_close(weights_of(ours), weights_of(plain), atol=1e-6, rtol=0, msg=name)
        assert losses_of(ours) == pytest.approx(losses_of(plain), abs=1e-6), name


@pytest.mark.parametrize("cases", [TRAINED, WRAPPED], ids=["trained", "wrapped"])
def test_threshold_zero_trains_as_the_plain_trainer(tmp_path, cases):
    run_ranks(2, against_plain, tmp_path, cases)


# Checkpoints.


def resumed(folder, options, training):
    whole = SieveCallback(**options)
    never_stopped = trained(folder, gpt2(dropout=0.1), whole, **SAVING, **training)
    saved = sorted(os.listdir(folder / "checkpoint-4"))
    assert [name for name in saved if "sieve" in name] == ["sieve-rank0.pt", "sieve-rank1.pt"]
    dist.barrier()
    half = SieveCallback(**options)
    stopped = trained(
        folder, gpt2(dropout=0.1), half, resume=str(folder / "checkpoint-4"), **SAVING, **training
    )
    assert half.sieve.step == whole.sieve.step
    assert torch.equal(weights_of(stopped), weights_of(never_stopped))
    ours, theirs = half.sieve.residuals, whole.sieve.residuals
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(theirs[name].any() for name in theirs)
    assert alike(stopped)


def resume_and_rotate(folder):
    resumed(folder / "hook", {"threshold": gs.Sigma(1), "rotation": 32}, {"bf16": True})
    resumed(folder / "local", {"threshold": gs.Sigma(1), "every": 3}, LOCAL)
    rotate_and_resume_the_last(folder / "rotated")


def rotate_and_resume_the_last(folder):
    callback = SieveCallback(threshold=gs.Sigma(1))
    trained(folder, gpt2(), callback, **SAVING, save_total_limit=1)
    assert os.listdir(folder) == ["checkpoint-6"]
    dist.barrier()
    callback = SieveCallback(threshold=gs.Sigma(1))
    trained(folder, gpt2(), callback, resume=True, **SAVING | {"max_steps": 8})
    assert callback.sieve.step == 8
    # What the ranks of a plain Trainer have saved.
    plain, callback = folder / "plain", SieveCallback(threshold=gs.Sigma(1))
    trained(plain, gpt2(), **SAVING | {"max_steps": 2})
    dist.barrier()
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr("gradsieve.integrations.transformers.tell", told.append)
        trained(plain, gpt2(), callback, resume=True, max_steps=4)
    assert "was saved without SieveCallback" in told[0]
    assert callback.sieve.step == 2
    # The hook's and those of local steps do not fit each other.
    with pytest.raises(ValueError, match="saved without local steps"):
        trained(folder, gpt2(), SieveCallback(every=2), resume=True, **SAVING, **LOCAL)


def test_a_resumed_run_ends_with_the_bits_of_one_that_never_stopped(tmp_path):
    run_ranks(2, resume_and_rotate, tmp_path)


# Use.


def use(folder):
    # The defaults, and training on.
    callback = SieveCallback()
    made = trained(folder, gpt2(), callback, max_steps=8)
    assert callback.sieve.totals.steps == 8
    assert losses_of(made)[-1] < losses_of(made)[0]
    logged = [entry for entry in made.state.log_history if "sieve/density" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6, 8]
    assert logged[0]["sieve/bits_per_parameter"] > 0
    made.train()
    assert callback.sieve.totals.steps == 16
    assert alike(made)
    # Adapters.
    plain, callback = trained(folder, lora()), SieveCallback(**EXACT)
    torch.testing.assert_close(weights_of(trained(folder, lora(), callback)), weights_of(plain))
    callback = SieveCallback(threshold=gs.Sigma(1))
    trained(folder, lora(), callback)
    assert len(callback.sieve.last.thresholds) == len(callback.sieve.residuals) == 8
    assert callback.sieve.last.density < 0.5


class Large(torch.nn.Module):
    """A model that has memory for small batches only."""

    def __init__(self):
        super().__init__()
        self.inner = gpt2()

    def forward(self, input_ids, labels):
        if len(input_ids) > 3:
            raise RuntimeError("CUDA out of memory.")
        return self.inner(input_ids=input_ids, labels=labels)


def find_the_batch_size(folder):
    callback = SieveCallback(threshold=gs.Sigma(1))
    made = trained(folder, Large(), callback, auto_find_batch_size=True)
    assert callback.sieve.totals.steps == made.state.global_step == 6
    assert alike(made)


def misuse(folder):
    with pytest.raises(gs.SieveError, match="works in Trainer"):
        SieveCallback().on_train_begin(None, None, None)
    made = trained(folder, gpt2(), SieveCallback(threshold=gs.Sigma(1)))
    made.add_callback(SieveCallback(threshold=gs.Sigma(1)))
    with pytest.raises(gs.SieveError, match="the communication hook sieve_hook already"):
        made.train()
    made = trainer(folder, gpt2(), SieveCallback())
    made._wrap_model = lambda model, **_: torch.nn.Sequential(model)  # As FSDP does.
    with pytest.raises(gs.SieveError, match="trains Sequential: train without FSDP"):
        made.train()


def retry_and_misuse(folder):
    find_the_batch_size(folder)
    misuse(folder)


def test_defaults_logs_a_second_training_and_adapters(tmp_path):
    run_ranks(2, use, tmp_path)


def test_a_batch_size_is_found_and_wrong_use_is_refused(tmp_path):
    run_ranks(2, retry_and_misuse, tmp_path)


def average(weights):
    return torch.optim.SGD(weights, lr=1.0)


class Meddling(TrainerCallback):
    """Asks for a checkpoint in every step."""

    def on_step_end(self, args, state, control, **event):
        control.should_save = True


class Watching(TrainerCallback):
    """Keeps a rank's own weights before the last exchange, and sees whether they differ."""

    def on_step_end(self, args, state, control, model=None, **event):
        self.own = torch.cat([p.detach().double().flatten() for p in model.parameters()])

    def on_evaluate(self, args, state, control, **event):
        self.evaluated.append((state.global_step, alike(self.trainer)))


def take_local_steps(folder):
    watching, callback = Watching(), SieveCallback(**EXACT, every=4, optimizer=average)
    made = trained(folder, gpt2(), watching, callback, **LOCAL)
    assert callback.outer.inner_steps == 6
    assert callback.sieve.step == 2
    assert alike(made)
    assert not torch.equal(watching.own, weights_of(made))
    dist.all_reduce(watching.own)
    torch.testing.assert_close(watching.own / 2, weights_of(made), atol=1e-6, rtol=0)

    watching, callback = Watching(), SieveCallback(every=4, threshold=gs.Sigma(1))
    evaluation = {"eval_strategy": "steps", "eval_steps": 3}
    watching.evaluated = []
    watching.trainer = trainer(folder, gpt2(), watching, callback, **LOCAL, **evaluation)
    watching.trainer.train()
    assert watching.evaluated == [(3, True), (6, True)]

    with pytest.raises(gs.SieveError, match="list SieveCallback after"):
        trained(folder, gpt2(), SieveCallback(every=4), Meddling(), **LOCAL)
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr("gradsieve.integrations.running_trainer.tell", told.append)
        trained(folder, gpt2(), SieveCallback(every=4), max_steps=1)
    assert "average_tokens_across_devices=False" in told[0]


def step_on_one_rank():
    """Rank 0 takes steps in which no other rank takes part."""
    model = DDP(gpt2(), find_unused_parameters=True)
    train_locally(model, every=10)
    if dist.get_rank() == 0:
        tokens = torch.arange(16).reshape(1, 16)
        for _ in range(2):
            model(input_ids=tokens, labels=tokens).loss.backward()
        assert all(parameter.grad.any() for parameter in model.parameters())


def local_steps(folder):
    take_local_steps(folder)
    step_on_one_rank()


def test_local_steps_exchange_before_the_model_is_shown_and_do_not_meet_between(tmp_path):
    run_ranks(2, local_steps, tmp_path)


# Wrong use.


def misuse_alone(folder):
    trainers.as_torchrun_does = lambda: None
    with pytest.raises(gs.SieveError, match="in one process: start several"):
        trained(folder, gpt2(), SieveCallback())


def test_one_process_is_refused(tmp_path):
    run_ranks(1, misuse_alone, tmp_path)


def test_wrong_options_are_refused_at_once():
    with pytest.raises(TypeError, match="SieveCallback has no option 'treshold'; did you mean"):
        SieveCallback(treshold=gs.Sigma(1))
    with pytest.raises(TypeError, match="config must be a SieveConfig"):
        SieveCallback(gs.Sigma(1))
    searching = SimpleNamespace(state=SimpleNamespace(is_hyper_param_search=True))
    with pytest.raises(gs.SieveError, match="does not serve hyperparameter_search"):
        ddp_of(searching)


# The scripts.


def printed_by(script, folder, *arguments):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ran = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(EXAMPLES / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_script_trains_and_resumes_to_the_same_loss(tmp_path):
    printed = printed_by("transformers_gpt2.py", tmp_path)
    assert "40 steps (40 gather)" in printed
    shutil.rmtree(tmp_path / "gpt2-run" / "checkpoint-40")
    resumed = printed_by("transformers_gpt2.py", tmp_path, "--resume")
    assert "20 steps (20 gather)" in resumed
    assert resumed.split("held-out")[1] == printed.split("held-out")[1]


def test_the_script_with_adapters_prunes_all_of_them(tmp_path):
    printed = printed_by("transformers_lora.py", tmp_path)
    assert "28 adapter matrices are pruned" in printed
    assert float(printed.split(" bits a parameter")[0].split()[-1]) < 2
