"""Every workload can be had by its name, and trains."""

import math

import pytest
import torch

from gradsieve.lab.workloads.workload import WORKLOADS, cross_entropy, load_workload


@pytest.mark.parametrize("name", WORKLOADS)
def test_one_backward_pass_gives_every_parameter_a_finite_gradient(name: str) -> None:
    workload = load_workload(name)
    assert workload.name == name
    torch.manual_seed(0)
    model = workload.make_model()
    inputs, targets = next(workload.batches(0, 2, 0))
    cross_entropy(model, inputs, targets).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name
    optimizer = workload.make_optimizer(model, workload.learning_rate)
    assert [group["lr"] for group in optimizer.param_groups] == [workload.learning_rate]
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="'gtp'; choose from mnist_cnn, mlp, gpt, gpt-small"):
        load_workload("gtp")


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_the_loss_is_a_mean_over_all_targets(shape: tuple[int, ...]) -> None:
    model = torch.nn.Embedding(4, 8)
    torch.nn.init.zeros_(model.weight)
    inputs = torch.zeros(shape, dtype=torch.int64)
    loss = cross_entropy(model, inputs, inputs)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(math.log(8))
