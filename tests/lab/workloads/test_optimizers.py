"""Workloads with another optimizer than their own: how they are written, and what trains what."""

from copy import deepcopy

import pytest
import torch

from gradsieve.lab.methods.played.synchronous import backward
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import load_workload, task_of

MUON = "gpt-small:optimizer=muon"


def test_a_workload_with_an_optimizer_is_one_of_its_own():
    muon, own = load_workload(MUON), load_workload("gpt-small")
    assert (muon.name, muon.task, muon.optimizer) == (MUON, "gpt-small", "muon")
    assert (own.name, own.task, own.optimizer) == ("gpt-small", "gpt-small", "adamw")
    assert muon.learning_rate > own.learning_rate
    assert muon.make_schedule is own.make_schedule
    assert task_of(MUON) == "gpt-small"


@pytest.mark.parametrize(
    ("text", "name"),
    [("gpt:optimizer=adamw", "gpt"), ("mlp:optimizer=adam", "mlp"), ("gpt-small", "gpt-small")],
)
def test_its_own_optimizer_leaves_a_workload_as_it_is(text, name):
    assert load_workload(text) is load_workload(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpt-small:", "has no option ''"),
        ("gpt-small:muon", "has no option 'muon'"),
        ("gpt-small:optimizer=sgd", "optimizer=adamw .its own. or optimizer=muon"),
        ("gpt-small:optimizer=muon,lr=1", "has no option 'optimizer=muon,lr=1'"),
        ("gpt-small:optimizer=muon:optimizer=muon", "has no option"),
        ("gpt-small:dropout=0.1", "has no option 'dropout=0.1'"),
        ("mnist_cnn:optimizer=adamw", "write mnist_cnn:OPTION with optimizer=adam .its own."),
        ("mlp:optimizer=muon", "write mlp:OPTION with optimizer=adam .its own.$"),
        ("gtp:optimizer=muon", "there is no workload 'gtp'"),
    ],
)
def test_what_is_written_otherwise_is_refused_with_what_there_is(text, words):
    with pytest.raises(ValueError, match=words):
        load_workload(text)


def test_a_torch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"needs torch 2\.9 or newer"):
        load_workload(MUON)


@pytest.mark.parametrize(
    ("text", "matrices", "rest_rate", "decay"),
    [(MUON, 20, 2e-3, 0.1), ("mnist_cnn:optimizer=muon", 1, 1e-3, 0.0)],
)
def test_muon_trains_hidden_matrices_and_the_run_sets_its_rate_alone(
    text, matrices, rest_rate, decay
):
    workload = load_workload(text)
    model = workload.make_model()
    muon, rest = workload.make_optimizer(model, 7e-3).param_groups
    assert (muon["lr"], rest["lr"]) == (7e-3, rest_rate)
    assert (muon["weight_decay"], muon["adjust_lr_fn"]) == (decay, "match_rms_adamw")
    assert len(muon["params"]) == matrices
    assert all(parameter.dim() == 2 for parameter in muon["params"])
    owned = [id(parameter) for group in (muon, rest) for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


@pytest.fixture
def trained():
    """A replica after three steps, and a batch to go on with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    workload = load_workload(MUON)
    torch.manual_seed(0)
    replica = Replica(workload, workload.make_model(), 4e-3, steps=100)
    batch = next(workload.batches(0, 1, 0))
    for _ in range(3):
        train(replica, batch)
    yield replica, batch
    torch.set_num_threads(before)


def train(replica, batch):
    backward(replica.model, *batch)
    replica.update()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_schedule_moves_both_rates(trained):
    replica, _ = trained
    assert [group["lr"] for group in replica.optimizer.param_groups] == pytest.approx(
        [4e-3 * 4 / 50, 2e-3 * 4 / 50]
    )


def test_a_copy_goes_on_alike_and_shares_nothing(trained):
    replica, batch = trained
    copy, start = replica.copy(), weights(replica.model)
    train(replica, batch)
    assert torch.equal(weights(copy.model), start)
    for _ in range(2):
        train(copy, batch)
    train(replica, batch)
    assert torch.equal(weights(copy.model), weights(replica.model))
    assert not torch.equal(weights(copy.model), start)


def test_a_saved_state_resumes(trained, tmp_path):
    replica, batch = trained
    model = deepcopy(replica.model)
    torch.save(replica.optimizer.state_dict(), tmp_path / "state.pt")
    resumed = replica.workload.make_optimizer(model, 1.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(replica, batch)
    backward(model, *batch)
    resumed.step()
    assert torch.equal(weights(model), weights(replica.model))


def test_an_optimizer_copied_with_its_model_goes_on_alike(trained):
    replica, batch = trained
    model, optimizer = deepcopy((replica.model, replica.optimizer))
    train(replica, batch)
    backward(model, *batch)
    optimizer.step()
    assert torch.equal(weights(model), weights(replica.model))


def test_a_closure_is_called_with_gradients_on(trained):
    replica, batch = trained

    def closure():
        assert torch.is_grad_enabled()
        return backward(replica.model, *batch)[0]

    before = weights(replica.model)
    assert 0 < replica.optimizer.step(closure) < 6
    assert not torch.equal(weights(replica.model), before)
