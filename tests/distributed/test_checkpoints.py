"""Checkpoints of tools for all ranks: each rank gets its own state back, or is told why not."""

import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from local_steps import train as train_outer
from models import Crossed, build, on_every_rank, smaller_pieces, train, weights
from ranks import run_ranks
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import gradsieve as gs
from gradsieve.exchange import gather
from gradsieve.saved.seal import checksum_of

SAVED_AFTER, STEPS = 4, 7


def start(*, bound=True, seed=0, **options):
    torch.manual_seed(seed)
    model = build(Crossed, seed=seed)
    state = gs.SieveState(min_numel=100, threshold=gs.Sigma(1.0), **options)
    if bound:
        state.bind(model)
        model.register_comm_hook(state, gs.sieve_hook)
    return model, state, torch.optim.SGD(model.parameters(), lr=0.1)


def finish(model, state):
    if not model._comm_hooks:
        state.bind(model)
        model.register_comm_hook(state, gs.sieve_hook)
    train(model, STEPS - SAVED_AFTER, SAVED_AFTER)
    return everything(model, state)


def everything(model, state):
    """What must be the same bits. Times that a state keeps are not."""
    sieve = getattr(state, "state", state)
    kept = [*sieve.residuals.values(), *sieve.owned_residuals.values()]
    kept += [weights for _, weights in state._weights.named] if sieve is not state else []
    return torch.cat([weights(model), *(tensor.detach().flatten() for tensor in kept)])


def key():
    return f"sieve-rank{dist.get_rank()}"


def by_rank(state):
    return {key(): state}


def per_rank(state):
    return {"sieve": gs.checkpoint.PerRank(state)}


def save(held, folder):
    dcp.save(held, checkpoint_id=folder)


def save_meanwhile(held, folder, model):
    """Training goes on while the file is written."""
    future = dcp.async_save(held, checkpoint_id=folder)
    train(model, STEPS - SAVED_AFTER, SAVED_AFTER)
    future.result()


def resume(folder, hold, *, bound=True, is_async=False, **options):
    """A new run, with other weights at first, ends as the one that saved."""
    model, state, _ = start(**options)
    train(model, SAVED_AFTER)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    if is_async:
        save_meanwhile(hold(state), folder, model)
        expected = everything(model, state)
    else:
        save(hold(state), folder)
        expected = finish(model, state)
    model, state, _ = start(bound=bound, seed=1, **options)
    model.load_state_dict(kept)
    dcp.load(hold(state), checkpoint_id=folder)
    assert state.step == SAVED_AFTER
    assert torch.equal(finish(model, state), expected), (hold, options)


def naive_ways(folder):
    """One key for all ranks: no rank loads a mixture, and each is told what to save instead."""
    model, state, _ = start(exchange="gather")
    train(model, SAVED_AFTER)
    mine = state.state_dict()
    save({"state": state, "dict": state.state_dict()}, folder)
    words = r"mixture of their states: save gs.checkpoint.PerRank\(state\)"
    with pytest.raises(ValueError, match=words):
        dcp.load({"state": state}, checkpoint_id=folder)
    found = {"dict": state.state_dict()}
    dcp.load(found, checkpoint_id=folder)
    with pytest.raises(ValueError, match=words):
        state.load_state_dict(found["dict"])
    # Where rank 0 writes one file for all, the others are told.
    box = [mine]
    dist.broadcast_object_list(box)
    if dist.get_rank():
        words = r"rank 0 of 2, loaded on rank 1 of 2: .*PerRank.*state\.gathered_state_dict\(\)"
        with pytest.raises(ValueError, match=words):
            state.load_state_dict(box[0])
    assert state.state_dict()["checksum"] == mine["checksum"]
    # A state that no model has named yet has no place for the residuals.
    save(by_rank(state), folder + "-own")
    with pytest.raises(ValueError, match=r"state.bind\(model\) first, or .*PerRank"):
        dcp.load(by_rank(start(bound=False, exchange="gather")[1]), checkpoint_id=folder + "-own")


def other_numbers_of_ranks(folder):
    """The states in a folder can be taken out of it and made into those of other ranks."""
    if dist.get_rank() == 0:
        file = f"{folder}/all.pt"
        dcp_to_torch_save(folder, file)
        saved = torch.load(file, weights_only=True)["sieve"]
        states = [saved[f"rank{rank}"][0] for rank in range(2)]
        assert [state["rank"] for state in gs.reshard(states, 3)] == [0, 1, 2]
        lone = gs.checkpoint.PerRank(gs.SieveState())
        with pytest.raises(ValueError, match=r"states of rank7, and none of rank0: gs\.reshard"):
            lone.load_state_dict({"rank7": (states[0],)})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 40)
        self.norm = nn.BatchNorm1d(40)
        self.two = nn.Linear(40, 5)

    def forward(self, x):
        return self.two(self.norm(self.one(x)).relu())


def start_outer(seed=0):
    torch.manual_seed(seed)
    net = Net()
    options = {"every": 5, "delay": 2, "min_numel": 100, "exchange": "two-shot", "rotation": 16}
    outer = gs.OuterSync(net, threshold=gs.Sigma(1.0), **options)
    return net, outer, torch.optim.SGD(net.parameters(), lr=0.1)


def resume_outer(folder, hold):
    """In the middle of an exchange, into one that has never exchanged."""
    net, outer, optimizer = start_outer()
    train_outer(net, outer, 11, optimizer=optimizer)
    assert outer.is_exchanging
    kept = {name: weight.clone() for name, weight in net.state_dict().items()}
    save(hold(outer), folder)
    train_outer(net, outer, 6, 11, optimizer)
    expected = everything(net, outer)
    net, outer, optimizer = start_outer(seed=1)
    net.load_state_dict(kept)
    dcp.load(hold(outer), checkpoint_id=folder)
    train_outer(net, outer, 6, 11, optimizer)
    assert torch.equal(everything(net, outer), expected)


def every_way_of_torch(folder):
    resume(f"{folder}/1", by_rank, exchange="gather")
    resume(f"{folder}/2", by_rank, exchange="two-shot", rotation=16)
    resume(f"{folder}/3", per_rank, exchange="two-shot", bound=False)
    resume(f"{folder}/4", per_rank, exchange="gather", rotation=16, is_async=True)
    resume(f"{folder}/5", by_rank, exchange="gather", is_async=True)
    resume_outer(f"{folder}/6", by_rank)
    resume_outer(f"{folder}/7", per_rank)
    naive_ways(f"{folder}/8")
    other_numbers_of_ranks(f"{folder}/3")


def resume_from_one_file(file, start, go_on, load):
    first, state, optimizer = start()
    go_on(first, state, optimizer, 0, 11)
    kept = {name: weight.clone() for name, weight in first.state_dict().items()}
    saved = state.gathered_state_dict()
    assert len(saved["states"]) == (2 if dist.get_rank() == 0 else 0)
    if dist.get_rank() == 0:
        torch.save(saved, file)
    go_on(first, state, optimizer, 11, 6)
    expected = everything(first, state)
    assert on_every_rank(True)
    first, state, optimizer = start(seed=1)
    first.load_state_dict(kept)
    load(state, torch.load(file, weights_only=True, mmap=True))
    go_on(first, state, optimizer, 11, 6)
    assert torch.equal(everything(first, state), expected)
    if dist.get_rank():
        with pytest.raises(ValueError, match="none of 2 ranks, since it was not saved by rank 0"):
            state.load_gathered(saved)


def one_file_for_all(folder):
    resume_from_one_file(
        f"{folder}/sieve.pt",
        lambda seed=0: start(seed=seed, exchange="two-shot"),
        lambda model, _, optimizer, first, steps: train(model, steps, first, optimizer=optimizer),
        lambda state, saved: state.load_gathered(saved),
    )
    resume_from_one_file(
        f"{folder}/outer.pt",
        start_outer,
        lambda net, outer, optimizer, first, steps: train_outer(
            net, outer, steps, first, optimizer
        ),
        lambda outer, saved: outer.load_gathered(saved),
    )
    # What was gathered is each rank's own, and reshards; other numbers of ranks are told so.
    model, state, _ = start()
    saved = torch.load(f"{folder}/sieve.pt", weights_only=True)
    with pytest.raises(ValueError, match="of all ranks: give them to load_gathered"):
        state.load_state_dict(saved)
    with pytest.raises(ValueError, match="of one rank: give it to load_state_dict"):
        state.load_gathered(state.state_dict())
    with pytest.raises(TypeError, match=r"PerRank takes a SieveState, .* got DistributedData"):
        gs.checkpoint.PerRank(model)
    assert [checksum_of(one) for one in saved["states"]] == [
        one["checksum"] for one in saved["states"]
    ]
    assert len(gs.reshard(saved["states"], 3)) == 3
    fewer = saved | {"world_size": 1, "states": saved["states"][:1]}
    with pytest.raises(
        ValueError, match=r'from 1 ranks .* by 2: gs\.reshard\(saved\["states"\], 2'
    ):
        state.load_gathered(fewer)
    for broken in (saved | {"version": 2}, saved | {"world_size": 3}, {}, saved["states"][0]):
        with pytest.raises(
            ValueError, match=r"version|states must be a list of 3|lacks|of one rank"
        ):
            state.load_gathered(broken)
    assert state.step == 0
    # A file a rank, in a folder of all.
    files = gs.checkpoint.save(state, Path(folder) / "files")
    assert files.name == f"sieve-rank{dist.get_rank()}.pt"
    gs.checkpoint.load(state, Path(folder) / "files")
    with pytest.raises(FileNotFoundError, match=r"0 ranks have saved there.*gs.checkpoint.save"):
        gs.checkpoint.load(state, folder)
    # One rank cannot save: all ranks raise, and none waits for it.
    if dist.get_rank():
        state.state_dict = lambda: 1 / 0
    with pytest.raises((ZeroDivisionError, gs.SieveError)) as raised:
        state.gathered_state_dict()
    if dist.get_rank() == 0:
        assert "rank 1 could not save what gathered_state_dict() gathers" in str(raised.value)
    assert on_every_rank(True)
    # A rank that gathers alone gives up by itself, and says what to do.
    gather.PATIENCE, gather.timeout_of = 0.1, lambda _: timedelta(seconds=0.3)
    if dist.get_rank() == 0:
        with pytest.raises(gs.ExchangeError, match=r"rank 1 has not called .*: call it on every"):
            state.gathered_state_dict()
    assert on_every_rank(True)


def every_way(folder):
    # torch warns of what it will change itself.
    warnings.simplefilter("ignore")
    smaller_pieces()
    every_way_of_torch(folder)
    one_file_for_all(folder)


def test_every_rank_gets_its_own_back(tmp_path):
    run_ranks(2, every_way, str(tmp_path))
