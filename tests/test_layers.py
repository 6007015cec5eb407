"""Who imports whom, as far as import-linter cannot say it: it knows torch as a whole only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
DISTRIBUTED = "torch.distributed", "torch._C._distributed_c10d", "torch.nn.parallel"
DDP = {"torch.nn.parallel", "torch.nn.parallel.DistributedDataParallel"}
ONE_RANK = "bucket", "control", "parameters", "saved", "telemetry"
LOOK_AT_MODELS = "bucket/requirements.py", "saved/copies.py"
"""Whether the user's model is a DDP model is all that these ask of torch.distributed."""
FRAMEWORKS = {"lightning", "pytorch_lightning", "accelerate", "transformers", "peft", "ray"}
LAB_ONLY = "typer", "rich", "altair", "vl_convert", "pooch", "pyroute2", "scipy", "tensorboard"


@cache
def named_in(source: str) -> frozenset[str]:
    """Return every module that `source` may import, anywhere, or reach as an attribute of torch."""
    return frozenset(names(ast.parse(source)))


def names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def distributed_in(source: str) -> set[str]:
    beginnings = tuple(f"{module}." for module in DISTRIBUTED)
    return {name for name in named_in(source) if f"{name}.".startswith(beginnings)}


def file_of(module: str) -> Path | None:
    """Return the file of one of gradsieve's modules; None for any other name."""
    path = SOURCES.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def reached_from(package: str) -> set[Path]:
    """Return the files of a package and all files of gradsieve that they import, at any depth."""
    waiting = [*SOURCES.joinpath(*package.split(".")).rglob("*.py")]
    reached: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += filter(None, map(file_of, named_in(file.read_text())))
    return reached


@pytest.mark.parametrize("package", ["gradsieve.codec", "gradsieve.sieve", "gradsieve.rotation"])
def test_one_rank_s_work_knows_nothing_of_other_ranks(package):
    reached = reached_from(package)
    assert len(reached) > 3
    assert {
        str(file.relative_to(SOURCES)): found
        for file in reached
        if (found := distributed_in(file.read_text()))
    } == {}


def test_what_is_kept_on_one_rank_is_exchanged_elsewhere():
    package = SOURCES / "gradsieve"
    files = [file for room in ONE_RANK for file in (package / room).rglob("*.py")]
    assert len(files) > 30
    named = {
        file.relative_to(package).as_posix(): found
        for file in files
        if (found := distributed_in(file.read_text()))
    }
    assert named == dict.fromkeys(LOOK_AT_MODELS, DDP)


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import all_reduce",
        "def late():\n    import torch.distributed.nn",
        "import torch\ntorch.distributed.barrier()",
        "from torch._C._distributed_c10d import GradBucket",
        "from torch.nn.parallel import DistributedDataParallel",
    ],
)
def test_every_way_to_torch_distributed_is_seen(source):
    assert distributed_in(source)


def test_what_is_not_torch_distributed_is_not_taken_for_it():
    assert not distributed_in("import torch.distributions\nfrom torch import Tensor, nn\n")


@pytest.fixture(scope="module")
def without_typer():
    """Import gradsieve and call the command in a process where typer cannot be imported."""
    script = """
import sys
import gradsieve
print(*sys.modules)
sys.modules["typer"] = None
from gradsieve.__main__ import main
main()
"""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )


def test_training_imports_nothing_of_the_lab(without_typer):
    loaded = set(without_typer.stdout.split())
    assert {"gradsieve.hook", "torch", "numba"} <= loaded
    assert loaded.isdisjoint(LAB_ONLY)
    assert not [name for name in loaded if f"{name}.".startswith("gradsieve.lab.")]


def test_training_imports_no_framework(without_typer):
    assert FRAMEWORKS.isdisjoint(without_typer.stdout.split())
    package = SOURCES / "gradsieve"
    files = {*package.rglob("*.py")} - {*(package / "integrations").rglob("*.py")}
    roots = {f: {name.split(".")[0] for name in named_in(f.read_text())} for f in files}
    assert {f.name: found for f in files if (found := roots[f] & FRAMEWORKS)} == {}


def test_without_the_lab_the_command_names_the_extra(without_typer):
    assert without_typer.returncode == 2
    assert without_typer.stderr == (
        "gradsieve: the command needs typer, which is not installed: pip install 'gradsieve[lab]'\n"
    )
