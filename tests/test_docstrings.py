"""The examples in the docstrings of public names and of the bucket run as they stand."""

import doctest

import pytest
import torch
import torch.distributed as dist

import gradsieve as gs
from gradsieve import bucket

ALONE = (
    gs.SieveConfig,
    gs.Budget,
    gs.Sigma,
    gs.UnsentMean,
    gs.Density,
    gs.Fixed,
    gs.JsonLines,
    bucket,
    gs.select,
    gs.encode,
    gs.decode,
)
IN_A_GROUP = (
    gs.attach,
    gs.SieveState,
    gs.OuterSync,
    gs.Recorder,
    gs.reshard,
    gs.checkpoint.PerRank,
)


def run_example(name):
    """Run the example in the docstring of a name itself, without those of its members."""
    test = doctest.DocTestParser().get_doctest(name.__doc__ or "", {}, name.__name__, None, None)
    assert test.examples, f"{name.__name__} has no example"
    told = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert runner.run(test, out=told.append).failed == 0, "".join(told)


@pytest.fixture
def process_group(tmp_path, monkeypatch):
    """A group of this process alone, in a directory that an example may write to."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ALONE, ids=lambda name: name.__name__)
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(name)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", IN_A_GROUP, ids=lambda name: name.__name__)
def test_the_example_of_a_public_name_runs_in_a_group(name):
    run_example(name)


def test_a_name_without_an_example_fails():
    def bare() -> None:
        """It does nothing."""

    with pytest.raises(AssertionError, match="bare has no example"):
        run_example(bare)
