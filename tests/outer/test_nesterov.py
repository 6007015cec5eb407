"""The outer optimizer: its ramp, its limits, and its saved state."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import gradsieve as gs


def weights(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float32, device="cpu"))


def step(optimizer, gradient):
    for group in optimizer.param_groups:
        for own in group["params"]:
            own.grad = torch.full_like(own, gradient)
    optimizer.step()


def test_without_a_ramp_it_is_sgd_with_nesterov_momentum():
    mine, theirs = weights(1.0, -2.0), weights(1.0, -2.0)
    optimizer = gs.Nesterov([mine], lr=0.3, momentum=0.8, ramp=0)
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=0.8, nesterov=True)
    for gradient in (1.0, -0.5, 3.0, 0.0):
        step(optimizer, gradient)
        step(sgd, gradient)
        torch.testing.assert_close(mine, theirs)


def test_without_momentum_it_keeps_no_second_copy_of_the_weights():
    mine = weights(1.0)
    optimizer = gs.Nesterov([mine], lr=0.5, momentum=0)
    step(optimizer, 2.0)
    assert mine.item() == 0.0
    assert not any(isinstance(kept, torch.Tensor) for kept in optimizer.state[mine].values())


def test_the_momentum_never_passes_its_end():
    mine, theirs = weights(0.0), weights(0.0)
    ramped = gs.Nesterov([mine], lr=1.0, momentum=0.5, ramp=1)
    full = gs.Nesterov([theirs], lr=1.0, momentum=0.5, ramp=0)
    for _ in range(60):
        step(ramped, 1.0)
        step(full, 1.0)
    before = mine.item(), theirs.item()
    step(ramped, 1.0)
    step(full, 1.0)
    # Both move by the same amount once the ramp is over and the velocities have settled.
    assert mine.item() - before[0] == pytest.approx(theirs.item() - before[1], rel=1e-4)


def test_each_parameter_has_a_ramp_of_its_own():
    """Fragments take turns, so that parameters have made different numbers of steps."""
    first, second = weights(0.0), weights(0.0)
    optimizer = gs.Nesterov([first, second], lr=1.0)
    for _ in range(2):
        first.grad, second.grad = torch.ones(1), None
        optimizer.step()
    first.grad, second.grad = None, torch.ones(1)
    optimizer.step()
    assert first.item() == pytest.approx(-2.3125)
    assert second.item() == -1.0


def test_a_copy_that_loads_the_state_goes_on_alike():
    mine = weights(1.0, 2.0)
    optimizer = gs.Nesterov([mine])
    for gradient in (1.0, 0.5):
        step(optimizer, gradient)
    other = nn.Parameter(mine.detach().clone())
    copy = gs.Nesterov([other])
    copy.load_state_dict(deepcopy(optimizer.state_dict()))
    for gradient in (0.25, -1.0):
        step(optimizer, gradient)
        step(copy, gradient)
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"momentum": 1}, "momentum must be at least 0 and below 1"),
        ({"momentum": -0.1}, "momentum must be at least 0 and below 1"),
        ({"ramp": -1}, "ramp must be at least 0"),
        ({"ramp": float("inf")}, "ramp must be at least 0 and finite"),
    ],
)
def test_numbers_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        gs.Nesterov([weights(1.0)], **options)
