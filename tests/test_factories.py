"""No tensor of ours follows the default dtype or the default device of the user."""

import ast
from pathlib import Path

import gradsieve

FACTORIES = frozenset(
    {"arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace"}
    | {"logspace", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor"}
    | {"tensor", "zeros"}
)


def loose_calls(path):
    """Calls of torch's factories that do not name both."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id == "torch" and name in FACTORIES):
            continue
        if not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}:
            yield f"{path.name}:{node.lineno} torch.{name}"


def test_every_tensor_that_is_made_names_its_dtype_and_its_device():
    sources = list(Path(gradsieve.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert [call for path in sources for call in loose_calls(path)] == []


def test_a_call_that_names_neither_is_found(tmp_path):
    path = tmp_path / "loose.py"
    path.write_text('import torch\ntorch.zeros(3)\ntorch.ones(3, dtype=torch.int8, device="cpu")\n')
    assert list(loose_calls(path)) == ["loose.py:2 torch.zeros"]
