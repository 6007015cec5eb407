"""The transformer, its windows, its schedule, its judge, and two short trainings."""

import math
from itertools import islice

import pytest
import torch

from gradsieve.lab.workloads import gpt
from gradsieve.lab.workloads.gpt import (
    CONTEXT,
    GPT,
    GPT_SMALL,
    LEARNING_RATE,
    WARMUP_STEPS,
    WINDOWS,
    batches,
    held_out_loss,
    make_optimizer,
    make_schedule,
)
from gradsieve.lab.workloads.stdlib_text import load_stdlib_text
from gradsieve.lab.workloads.workload import Workload, cross_entropy

SMALL_BLOCK = {
    "norm1.weight": (128,),
    "norm1.bias": (128,),
    "attention.weight": (384, 128),
    "attention.bias": (384,),
    "projection.weight": (128, 128),
    "projection.bias": (128,),
    "norm2.weight": (128,),
    "norm2.bias": (128,),
    "expand.weight": (512, 128),
    "expand.bias": (512,),
    "contract.weight": (128, 512),
    "contract.bias": (128,),
}


def model_of(workload: Workload, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return workload.make_model()


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    return model_of(GPT_SMALL)


def some_bytes(length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(256, (2, length), generator=torch.Generator().manual_seed(1))


def test_parameters_of_the_small_one_have_their_names_and_shapes(small: torch.nn.Module) -> None:
    assert {name: tuple(p.shape) for name, p in small.named_parameters()} == {
        "tokens.weight": (256, 128),
        "positions.weight": (128, 128),
        **{f"blocks.{i}.{name}": shape for i in range(5) for name, shape in SMALL_BLOCK.items()},
        "norm.weight": (128,),
        "norm.bias": (128,),
    }


@pytest.mark.parametrize(("workload", "count"), [(GPT, 9_987_200), (GPT_SMALL, 1_040_768)])
def test_number_of_parameters(workload: Workload, count: int) -> None:
    assert sum(p.numel() for p in model_of(workload).parameters()) == count


def test_weights_are_normal_norms_one_and_biases_zero(small: torch.nn.Module) -> None:
    for name, parameter in small.named_parameters():
        if parameter.dim() == 1:
            assert torch.all(parameter == name.endswith("weight")), name
            continue
        ends_path = "projection" in name or "contract" in name
        sigma = 0.02 / math.sqrt(10) if ends_path else 0.02
        error = 4 / parameter.numel() ** 0.5
        assert parameter.mean().item() == pytest.approx(0, abs=error * sigma), name
        assert parameter.std().item() == pytest.approx(sigma, rel=error), name


def test_weights_follow_the_seed(small: torch.nn.Module) -> None:
    again, other = model_of(GPT_SMALL), model_of(GPT_SMALL, seed=1)
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert not torch.equal(small.tokens.weight, other.tokens.weight)


@torch.no_grad()
def test_a_later_byte_changes_no_earlier_logit(small: torch.nn.Module) -> None:
    tokens = some_bytes()
    changed = tokens.clone()
    changed[:, 60] ^= 1
    before, after = small(tokens), small(changed)
    assert before.shape == (2, CONTEXT, 256)
    torch.testing.assert_close(after[:, :60], before[:, :60])
    # From there on every position sees the change.
    assert ((after - before)[:, 60:].abs().amax(2) > 1e-5).all()


@torch.no_grad()
def test_a_shorter_text_has_the_logits_of_the_longer_one(small: torch.nn.Module) -> None:
    tokens = some_bytes()
    torch.testing.assert_close(small(tokens[:, :20]), small(tokens)[:, :20])


@torch.no_grad()
def test_the_order_of_earlier_bytes_matters(small: torch.nn.Module) -> None:
    tokens = some_bytes()
    swapped = tokens.clone()
    swapped[:, :2] = tokens[:, :2].flip(1)
    assert not torch.equal(swapped, tokens)
    assert not torch.allclose(small(swapped)[:, 2:], small(tokens)[:, 2:], atol=1e-6)


def inputs_of(rank: int, world_size: int = 2, seed: int = 3) -> torch.Tensor:
    return torch.stack([inputs for inputs, _ in islice(batches(rank, world_size, seed), 4)])


def test_a_batch_is_windows_of_the_training_text_and_the_bytes_that_follow() -> None:
    inputs, targets = next(batches(0, 1, 0))
    assert inputs.shape == targets.shape == (WINDOWS, CONTEXT)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    train = load_stdlib_text().train.numpy().tobytes()
    for window, follows in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert bytes([*window, follows[-1]]) in train


def test_batches_are_deterministic_and_follow_the_seed() -> None:
    assert torch.equal(inputs_of(1), inputs_of(1))
    assert not torch.equal(inputs_of(1), inputs_of(1, seed=4))


def test_no_window_comes_twice_in_four_steps_of_two_ranks() -> None:
    both = torch.cat([inputs_of(0), inputs_of(1)]).flatten(0, 1)
    assert len(both.unique(dim=0)) == len(both) == 2 * 4 * WINDOWS


@pytest.mark.parametrize("steps", [60, 200])
def test_the_rate_warms_up_and_ends_at_a_tenth(small: torch.nn.Module, steps: int) -> None:
    optimizer = make_optimizer(small)
    schedule = make_schedule(optimizer, steps)
    rates = []
    for _ in range(steps + 5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm, rest = rates[:WARMUP_STEPS], rates[WARMUP_STEPS:steps]
    assert warm == pytest.approx([LEARNING_RATE * (i + 1) / WARMUP_STEPS for i in range(50)])
    assert rest[0] == pytest.approx(LEARNING_RATE)
    assert rest == sorted(rest, reverse=True)
    # Half way between full and a tenth, in the middle.
    assert (rest[4] + rest[-5]) / 2 == pytest.approx(0.55 * LEARNING_RATE)
    assert rates[steps - 1 :] == pytest.approx([LEARNING_RATE / 10] * 6)


class Undecided(torch.nn.Module):
    """Thinks every byte as likely, and remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(256))
        self.asked: list[tuple[int, bool, bool]] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.asked.append((len(tokens), self.training, torch.is_grad_enabled()))
        return self.logits.expand(*tokens.shape, 256)


@pytest.mark.parametrize("training", [True, False])
def test_held_out_loss_is_taken_in_evaluation_mode_and_restores_the_flag(training: bool) -> None:
    model = Undecided().train(training)
    assert held_out_loss(model, count=40).mean == pytest.approx(math.log(256))
    assert model.asked == [(32, False, False), (8, False, False)]
    assert model.training is training


def test_held_out_loss_restores_the_flag_after_an_error(
    small: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer windows than the model has positions for.
    monkeypatch.setattr(gpt, "CONTEXT", CONTEXT + 1)
    with pytest.raises(RuntimeError):
        held_out_loss(small, count=1)
    assert small.training


def test_held_out_loss_is_the_same_however_it_is_cut(
    small: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = held_out_loss(small, count=10).mean
    monkeypatch.setattr(gpt, "EVALUATED_AT_ONCE", 7)
    assert held_out_loss(small, count=10).mean == pytest.approx(whole, abs=1e-4)
    shares = [held_out_loss(small, rank, 3, count=10) for rank in range(3)]
    assert [share.samples for share in shares] == [4, 3, 3]
    assert sum(share.total for share in shares) / 10 == pytest.approx(whole, abs=1e-4)


def test_held_out_loss_is_taken_on_the_held_out_files() -> None:
    seen = []

    class Spy(Undecided):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.extend(tokens.tolist())
            return super().forward(tokens)

    held_out_loss(Spy(), count=5)
    held_out = load_stdlib_text().held_out.numpy().tobytes()
    assert bytes(seen[0]) == held_out[:CONTEXT]
    assert bytes(seen[-1]) == held_out[-CONTEXT - 1 : -1]
    assert all(bytes(window) in held_out for window in seen)


def test_optimizer_is_adamw(small: torch.nn.Module) -> None:
    optimizer = make_optimizer(small)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.9, 0.95), 0.1)


def test_sixty_steps_of_the_small_one() -> None:
    # Seeds 0, 1 and 2 gave 3.09, 3.04 and 3.04 with Python 3.11, against 5.55 for a guess; the
    # band leaves room for the sources of other versions.
    model = model_of(GPT_SMALL)
    optimizer = make_optimizer(model)
    schedule = make_schedule(optimizer, steps=60)
    for inputs, targets in islice(batches(0, 1, 0), 60):
        loss = cross_entropy(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert 2.8 <= held_out_loss(model, count=32).mean <= 3.5


def test_six_steps_of_the_large_one() -> None:
    # Seeds 0, 1 and 2 began at 5.38, 5.43 and 5.50 and gave 3.60, 3.71 and 3.58 with Python 3.11.
    # The loss of a training batch is no measure: it varies by 0.6 from batch to batch.
    model = model_of(GPT)
    optimizer = make_optimizer(model)
    losses = []
    for inputs, targets in islice(batches(0, 1, 0), 6):
        loss = cross_entropy(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 5.2 <= losses[0] <= 5.7
    assert 3.2 <= held_out_loss(model, count=32).mean <= 4.1
