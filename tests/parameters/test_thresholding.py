"""Thresholds that follow the gradients of the whole model."""

import numpy as np
import pytest
import torch

import gradsieve as gs
from gradsieve.parameters.parameter import ParameterState


@pytest.fixture
def normal():
    return torch.from_numpy(np.random.default_rng(0).standard_normal(4000, np.float32))


def parameters_like(gradients):
    return [
        ParameterState(f"p{place}", torch.zeros(gradient.numel()), whole=False)
        for place, gradient in enumerate(gradients)
    ]


def next_thresholds(kept, parameters, gradients, step=0):
    """The thresholds of several parameters in one step."""
    thresholds = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        thresholds.append(kept.next(parameter, gradient, torch.zeros(gradient.numel()), step))
        kept.observe(parameter, gs.measure(gradient))
    kept.sizes.end_step()
    return thresholds


def root_mean_square(*gradients):
    return float(torch.cat(gradients).square().mean().sqrt())


def test_balanced_sigma_is_between_the_model_and_the_parameter_in_the_steps_before(normal):
    kept = gs.SieveState(threshold=gs.Sigma(2.0, of="balanced")).sieve.thresholds
    gradients = small, large = normal[:3000], 10 * normal[3000:4000]
    parameters = parameters_like(gradients)
    first = next_thresholds(kept, parameters, gradients)
    assert first == pytest.approx([2 * float(small.std()), 2 * float(large.std())], rel=0.01)
    model = root_mean_square(*gradients)
    settled = [2 * (root_mean_square(own) * model) ** 0.5 for own in gradients]
    assert next_thresholds(kept, parameters, gradients) == pytest.approx(settled)
    # A jump is believed by and by; one burst does not silence the steps after it.
    burst = [1000 * gradient for gradient in gradients]
    next_thresholds(kept, parameters, burst)
    after = next_thresholds(kept, parameters, gradients)
    assert after == pytest.approx([1000**0.1 * threshold for threshold in settled])
    for _ in range(60):
        after = next_thresholds(kept, parameters, burst)
    assert after == pytest.approx([1000 * threshold for threshold in settled], rel=0.1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_balanced_sigma_forgets_a_step_that_is_not_finite(bad, normal):
    kept = gs.SieveState(threshold=gs.Sigma(1.0, of="balanced")).sieve.thresholds
    gradients = normal[:1000], normal[1000:3000]
    parameters = parameters_like(gradients)
    next_thresholds(kept, parameters, gradients)
    before = next_thresholds(kept, parameters, gradients)
    poisoned = gradients[0].clone()
    poisoned[3] = bad
    next_thresholds(kept, parameters, [poisoned, 5 * gradients[1]])
    assert next_thresholds(kept, parameters, gradients) == pytest.approx(before)
    next_thresholds(kept, parameters, [torch.zeros(1000), torch.zeros(2000)])
    assert next_thresholds(kept, parameters, gradients) == pytest.approx(before)


def test_balanced_sigma_of_a_parameter_that_wakes_up_later(normal):
    kept = gs.SieveState(threshold=gs.Sigma(1.0, of="balanced")).sieve.thresholds
    awake, late = normal[:1000], 100 * normal[1000:2000]
    parameters = parameters_like([awake, late])
    for _ in range(3):
        thresholds = next_thresholds(kept, parameters, [awake, torch.zeros(1000)])
    assert thresholds[1] == 0
    model = root_mean_square(awake, torch.zeros(1000))
    woken = next_thresholds(kept, parameters, [awake, late])
    assert woken[1] == pytest.approx((model * float(late.std())) ** 0.5, rel=0.01)


def scales(kept, steps):
    return [kept.scale_in(step) for step in steps]


def test_a_budget_that_follows_the_link_begins_low(normal):
    kept = gs.SieveState(threshold=gs.Budget("auto")).sieve.thresholds
    kept.budget.scale = 0.4
    assert scales(kept, [0, 1, 2]) == pytest.approx([0.1, 0.2, 0.3])
    kept.budget.scale = 4.0
    # At most four times the bytes that fit.
    assert scales(kept, [0, 9, 10, 38]) == pytest.approx([1.0, 1.0, 1.1, 3.9])
    assert scales(kept, [39, 40, 1000]) == pytest.approx([4.0, 4.0, 4.0])
    assert [kept.is_early(step) for step in (0, 38, 40)] == [True, True, False]
    (parameter,) = parameters_like([normal])
    thresholds = [kept.next(parameter, normal, torch.zeros(4000), step) for step in (0, 4, 100)]
    size = root_mean_square(normal)
    assert thresholds == pytest.approx([1.0 * size, 1.0 * size, 4.0 * size])


def test_it_never_sends_less_early_than_later():
    kept = gs.SieveState(threshold=gs.Budget("auto")).sieve.thresholds
    kept.budget.scale = 0.02
    assert scales(kept, [0, 5, 500]) == [0.02, 0.02, 0.02]


def test_what_comes_before_pruning_does_not_count_as_early():
    kept = gs.SieveState(threshold=gs.Budget("auto"), start_step=50).sieve.thresholds
    assert scales(kept, [50, 53, 59]) == pytest.approx([0.25, 0.4, 1.0])


@pytest.mark.parametrize(
    "budget",
    [
        gs.Budget(bytes_per_step=1e4),
        gs.Budget(bits_per_second="1mbit"),
        gs.Budget(seconds_per_step=0.01),
    ],
)
def test_a_budget_in_numbers_is_kept_from_the_first_step(budget):
    kept = gs.SieveState(threshold=budget).sieve.thresholds
    kept.budget.scale = 4.0
    assert scales(kept, [0, 1, 100]) == [4.0, 4.0, 4.0]


def test_weights_do_not_begin_low():
    net = torch.nn.Linear(80, 80)
    state = gs.SieveState(threshold=gs.Budget("auto"))
    state.bind_weights(net, list(net.named_parameters()))
    assert scales(state.sieve.thresholds, [0, 100]) == [1.0, 1.0]
