"""All private names of torch stand in one file, and the torch that is installed has each."""

import ast
import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable import replicate
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve
from gradsieve.runtime import torch_private

PACKAGE = Path(gradsieve.__file__).parent
OWN = Path(torch_private.__file__)
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
NUMBA = {"_cache", "_reduce", "_rebuild"}
"""What `runtime/machine_code.py` needs of numba, as its first lines say."""


def private_names(source):
    """Names that begin with one underscore and that the file has not made itself.

    They are looked for in imports from torch, in attributes of anything but `self` and `cls`, and
    in what `getattr` and its kin are given.
    """
    found, own = set(), set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                own.add(node.attr)
            case ast.Attribute():
                found.add(node.attr)
            case ast.Import():
                found |= parts_of_torch(name.name for name in node.names)
            case ast.ImportFrom(module=str()):
                found |= parts_of_torch(f"{node.module}.{name.name}" for name in node.names)
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr")):
                found |= strings_in(node)
    return {name for name in found - own if PRIVATE.fullmatch(name)}


def parts_of_torch(modules):
    paths = [module.split(".") for module in modules]
    return {part for path in paths if path[0] == "torch" for part in path}


def strings_in(tree):
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {value for value in constants if isinstance(value, str)}


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._C._distributed_c10d import GradBucket",
        "from torch.distributed.distributed_c10d import _world",
        "def f(): return torch._C._current_graph_task_id()",
        "store = distributed_c10d._get_default_store()",
        "self.model._comm_hooks = []",
        "inner = getattr(model, '_orig_mod', model)",
    ],
)
def test_the_search_finds_a_private_name(source):
    assert private_names(source)


def test_the_search_leaves_other_names_alone():
    source = "self._own = cls._made = other._own; name = getattr(hook, '__name__', '_')"
    assert not private_names(source)


def test_no_other_file_uses_a_private_name():
    own, found = OWN.read_text(), {}
    # Quoted elsewhere they would name an attribute, or a part of a parameter's name.
    ours = private_names(own) | torch_private.WRAPPER_MODULES
    assert len(ours) > 10
    for file in {*PACKAGE.rglob("*.py")} - {OWN}:
        source = file.read_text()
        names = private_names(source) | {name for name in ours if f'"{name}"' in source}
        found[str(file.relative_to(PACKAGE))] = names
    found["runtime/machine_code.py"] -= NUMBA
    found["runtime/compiled.py"] -= NUMBA
    assert {file: names for file, names in found.items() if names} == {}


@pytest.fixture
def group(tmp_path):
    """A job of one rank, in this process."""
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(tmp_path / "store"), 1),
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=77),
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_what_a_group_tells(group):
    assert torch_private.timeout_of(group) == timedelta(seconds=77)
    assert torch_private.device_types(group) >= {"cpu"}
    torch_private.default_store().set("key", "word")
    assert torch_private.default_store().get("key") == b"word"
    before = torch_private.process_groups_joined()
    more = dist.new_group([0])
    assert torch_private.process_groups_joined() == before + 1
    dist.destroy_process_group(more)
    assert torch_private.process_groups_joined() == before


def test_without_a_job_there_is_no_store():
    with pytest.raises(ValueError, match="not been initialized"):
        torch_private.default_store()


def test_the_hooks_of_a_model(group):
    model = DDP(nn.Linear(2, 2))
    assert torch_private.comm_hooks(model) == []
    model.register_comm_hook(None, allreduce_hook)
    assert torch_private.comm_hooks(model) == [(allreduce_hook, None)]
    torch_private.set_comm_hooks(model, [])
    assert torch_private.comm_hooks(model) == []


def test_what_a_hook_of_a_model_is_given(group):
    given, in_backward = [], []

    def hook(state: object, bucket: torch_private.GradBucket) -> torch.futures.Future[torch.Tensor]:
        given.append(bucket)
        in_backward.append(torch_private.is_in_backward())
        return allreduce_hook(None, bucket)

    model = DDP(nn.Linear(2, 2))
    model.register_comm_hook(None, hook)
    model(torch.ones(1, 2)).sum().backward()
    assert torch_private.GradBucket is dist.GradBucket
    assert [type(bucket) for bucket in given] == [dist.GradBucket]
    assert in_backward == [True]
    assert not torch_private.is_in_backward()


@pytest.mark.filterwarnings("ignore")
def test_parameters_that_fsdp_has_cut(group):
    flat = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"))
    assert [torch_private.is_flat_parameter(p) for p in flat.parameters()] == [True]
    assert not torch_private.is_flat_parameter(nn.Linear(2, 2).weight)
    mesh = dist.init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
    assert torch_private.names_of_root_mesh(mesh["shard"]) == ("replicate", "shard")
    assert torch_private.names_of_root_mesh(dist.init_device_mesh("cpu", (1,))) == ()


def test_the_group_of_a_replicated_module(group):
    given = dist.new_group([0])
    model = replicate(nn.Linear(2, 2), process_group=given)
    assert torch_private.group_of_replicate(model) is given
    assert torch_private.comm_hooks(model) == []
    model.register_comm_hook(None, allreduce_hook)
    assert torch_private.comm_hooks(model) == [(allreduce_hook, None)]
    assert not torch_private.has_replicated(model)
    model(torch.ones(1, 2)).sum().backward()
    assert torch_private.has_replicated(model)
    assert torch_private.group_of_replicate(nn.Linear(2, 2)) is None
    assert not torch_private.has_replicated(nn.Linear(2, 2))


@pytest.mark.parametrize("by_all", [True, False])
def test_by_how_many_ranks_a_join_divides(group, by_all):
    model = DDP(nn.Linear(2, 2))
    assert not torch_private.divides_by_ranks_with_inputs(model)
    with model.join(divide_by_initial_world_size=by_all):
        assert torch_private.divides_by_ranks_with_inputs(model) is not by_all
        model(torch.ones(1, 2)).sum().backward()
    assert not torch_private.divides_by_ranks_with_inputs(nn.Linear(2, 2))


def test_the_module_in_a_compiled_one():
    model = nn.Linear(2, 2)
    compiled = torch.compile(model)
    assert torch_private.uncompiled(compiled) is model
    assert torch_private.uncompiled(model) is model
    names = {part for name, _ in compiled.named_parameters() for part in name.split(".")}
    assert names & torch_private.WRAPPER_MODULES
