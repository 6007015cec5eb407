"""The table of topologies, what each promises, and that only they know their names."""

import ast
import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import gradsieve
from gradsieve.bucket.layout import BucketLayout
from gradsieve.config import SieveConfig
from gradsieve.exchange.cost import LinkCost, Links, NodeCost
from gradsieve.exchange.topology_names import EXCHANGES
from gradsieve.lab.methods.played.transport import play_exchanges
from gradsieve.parameters.registry import Registry
from gradsieve.topology import (
    DENSE,
    DENSE_HALF,
    DENSE_TOPOLOGIES,
    FRAMES,
    GATHER,
    HIERARCHICAL,
    TOPOLOGIES,
    DenseTopology,
    FrameTopology,
)
from gradsieve.topology.topology import ToNodes, Topology

TWO_SHOT = TOPOLOGIES["two-shot"]
LINK = LinkCost(latency=1e-3, rate=1e6)
WITHIN = LinkCost(latency=1e-5, rate=1e9)
BUCKET, FRAME = 4e6, 1e5
"""Bytes."""


def links_of(ranks, size=4, link=LINK):
    return Links(ranks, link, NodeCost(size, WITHIN, link))


def concrete(base):
    for topology in base.__subclasses__():
        if not inspect.isabstract(topology):
            yield topology
        yield from concrete(topology)


def test_the_table_has_every_topology_under_its_name():
    in_package = [t for t in concrete(Topology) if t.__module__.startswith("gradsieve.")]
    assert {type(topology) for topology in TOPOLOGIES.values()} == {*in_package}
    assert len(in_package) == len(TOPOLOGIES)
    assert [topology.name for topology in TOPOLOGIES.values()] == [*TOPOLOGIES]
    assert ("auto", *TOPOLOGIES) == EXCHANGES
    assert [*TOPOLOGIES.values()] == [*FRAMES, *DENSE_TOPOLOGIES]
    assert all(isinstance(topology, FrameTopology) for topology in FRAMES)
    assert all(isinstance(topology, DenseTopology) for topology in DENSE_TOPOLOGIES)
    for name, topology in TOPOLOGIES.items():
        assert SieveConfig(exchange=name).topology_name == topology.name


def test_seconds_are_those_of_the_model():
    links = links_of(8)
    nodes = WITHIN.all_reduce(4, BUCKET) + LINK.gather(2, FRAME / 4) + WITHIN.gather(4, FRAME / 2)
    wanted = {
        GATHER: 2 * 1e-3 + 7 * FRAME / 1e6,
        TWO_SHOT: 4 * 1e-3 + 2 * 7 / 8 * FRAME / 1e6,
        HIERARCHICAL: nodes,
        DENSE: 14 * 1e-3 + 14 / 8 * BUCKET / 1e6,
        DENSE_HALF: 14 * 1e-3 + 14 / 8 * BUCKET / 2 / 1e6,
    }
    found = {topology: topology.seconds(links, BUCKET, FRAME) for topology in TOPOLOGIES.values()}
    assert found == {topology: pytest.approx(seconds) for topology, seconds in wanted.items()}


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
@pytest.mark.parametrize("ranks", [4, 8, 64, 1024])
def test_seconds_grow_with_what_travels(topology, ranks):
    links = links_of(ranks)
    seconds = topology.seconds(links, BUCKET, FRAME)
    assert 0 < seconds < math.inf
    more_frame = topology.seconds(links, BUCKET, 2 * FRAME)
    more_bucket = topology.seconds(links, 2 * BUCKET, FRAME)
    assert (more_frame > seconds) == isinstance(topology, FrameTopology)
    # The ranks of a node add up their gradients first.
    assert (more_bucket > seconds) == (topology not in (GATHER, TWO_SHOT))
    assert min(more_frame, more_bucket) >= seconds
    slow = links_of(ranks, link=replace(LINK, rate=5e5))
    far = links_of(ranks, link=replace(LINK, latency=1e-2))
    assert topology.seconds(slow, BUCKET, FRAME) >= seconds
    assert topology.seconds(far, BUCKET, FRAME) > seconds


def test_only_hierarchical_needs_nodes():
    for topology in TOPOLOGIES.values():
        seconds = topology.seconds(Links(8, LINK), BUCKET, FRAME)
        assert (seconds == math.inf) == (topology is HIERARCHICAL)
    assert [topology.of_nodes for topology in FRAMES] == [False, False, True]


def test_what_grows_with_the_number_of_ranks():
    few, many = links_of(8), links_of(1024)
    assert GATHER.seconds(many, BUCKET, FRAME) > 100 * GATHER.seconds(few, BUCKET, FRAME)
    assert TWO_SHOT.seconds(many, BUCKET, FRAME) < 1.2 * TWO_SHOT.seconds(few, BUCKET, FRAME)


@pytest.mark.parametrize("topology", FRAMES, ids=lambda topology: topology.name)
@pytest.mark.parametrize("ranks", [2, 8, 64])
@pytest.mark.parametrize("size", [1, 2])
def test_work_is_that_of_the_plan(topology, ranks, size):
    """What a rank selects from, makes and reads of a bucket whose parameters are all cut."""
    links = links_of(ranks, size)
    places = {GATHER: 1, TWO_SHOT: ranks, HIERARCHICAL: size}[topology]
    layout = layout_of(nn.Linear(2**10, 2**10, bias=False))
    numel = sum(unit.numel for unit in layout.units)
    plans = [topology.plan(layout, place, places) for place in range(places)]
    work = topology.work(links, len(layout.units), numel)
    made = [share(plan.own_parts, numel) for plan in plans]
    # Sums are pruned again, by the owner of each part.
    sums = [share([plan.parts[plan.place]], numel) if plan.prunes_sums else 0.0 for plan in plans]
    assert mean(map(sum, zip(made, sums, strict=True))) == pytest.approx(work.made)
    assert work.selected == work.made
    frames_of_each = ranks // places
    read = ranks * mean(sums) + 1 if topology is TWO_SHOT else frames_of_each
    assert work.read == pytest.approx(read)
    assert work.collectives == {GATHER: 1, TWO_SHOT: 2, HIERARCHICAL: 3}[topology]
    sections = mean(sum(map(len, plan.own_parts)) for plan in plans)
    assert work.sections >= sections


def mean(numbers):
    found = list(numbers)
    return sum(found) / len(found)


def share(parts, numel):
    return sum(piece.numel for part in parts for piece in part) / numel


def layout_of(*modules, places=1):
    registry = Registry(min_numel=1000, rotation=0)
    registry.bind(nn.ModuleList(modules))
    return BucketLayout(list(registry), places)


@pytest.mark.parametrize("topology", FRAMES, ids=lambda topology: topology.name)
@pytest.mark.parametrize("places", [1, 2, 3, 5])
def test_a_plan_has_every_element_once(topology, places):
    modules = [nn.Linear(300, 200), nn.Linear(50, 30), nn.Conv2d(20, 64, 5), nn.PReLU(40_000)]
    places = topology.place_of(0, places)[1] if not topology.of_nodes else places
    layout = layout_of(*modules, places=places)
    units = len(layout.units)
    assert any(unit.whole for unit in layout.units)
    for place in range(places):
        plan = topology.plan(layout, place, places)
        assert plan.place == place
        assert len(plan.parts) == places
        seen = [torch.zeros(unit.numel, dtype=torch.int64) for unit in layout.units]
        for part in plan.parts:
            assert [piece.number for piece in part] == sorted({piece.number for piece in part})
            for piece in part:
                seen[piece.number][piece.start : piece.stop] += 1
        assert all(bool((counts == 1).all()) for counts in seen)
        assert plan.of_node == topology.of_nodes
        assert plan.own_parts == ([plan.parts[place]] if topology.of_nodes else plan.parts)
        for number in range(units):
            mine = plan.pieces[number]
            assert all(before.stop == after.start for before, after in pairwise(mine))


def test_ranks_in_one_process_have_no_nodes():
    def exchange():
        yield ToNodes(torch.zeros(1))

    with pytest.raises(ValueError, match="not divided into nodes"):
        play_exchanges([exchange()])


# Who knows the names.

SOURCES = Path(gradsieve.__file__).parent
OWNERS = "topology/", "exchange/topology_names.py"
"""Folders and files that may know what the names mean."""
OTHER_WORDS = {("lab/bench/rate/picture.py", "dense")}
"""What only looks like a topology: the methods of the lab have one that is called "dense"."""
COMPARING = {"startswith", "endswith", "index", "count", "get", "__eq__"}
OBJECTS = {"GATHER", "HIERARCHICAL", "DENSE", "DENSE_HALF"}
Constants = dict[str, list[str]]
"""Variables, and the topologies' names that each holds."""


def names_in(node: ast.AST, constants: Constants) -> Iterator[str]:
    """Topologies that are named anywhere in an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and part.value in TOPOLOGIES:
            yield part.value
        elif isinstance(part, ast.Name) and part.id in constants:
            yield from constants[part.id]
        elif isinstance(part, ast.Attribute) and part.attr in constants:
            yield from constants[part.attr]


def constants_of(tree: ast.AST) -> Constants:
    """Variables that are set to a topology's name, or to several."""
    found: Constants = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.NamedExpr):
            targets = [node.target]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        else:
            continue
        for target, value in (pair for t in targets for pair in paired(t, node.value)):
            name = target.id if isinstance(target, ast.Name) else None
            literal = isinstance(value, ast.Constant | ast.Tuple | ast.List | ast.Set)
            if name and literal and (known := [*names_in(value, {})]):
                found[name] = known
    return found


def paired(target: ast.AST, value: ast.AST | None) -> Iterable[tuple[ast.AST, ast.AST | None]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return zip(target.elts, value.elts, strict=False)
    return [(target, value)]


def is_name_of_a_topology(node: ast.AST) -> bool:
    """``topology.name``, ``GATHER.name``, ``record.exchange``."""
    if not isinstance(node, ast.Attribute):
        return False
    owner = ast.unparse(node.value)
    known = owner in OBJECTS or "topology" in owner
    return node.attr == "exchange" or (node.attr == "name" and known)


def compared(tree: ast.AST, constants: Constants) -> Iterator[str]:
    """Topologies whose names are compared with something, or stand for a row of a table."""
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            if not isinstance(node.ops[0], ast.Is | ast.IsNot):
                yield from (ast.unparse(part) for part in parts if is_name_of_a_topology(part))
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) != "Literal":
            parts = [node.slice]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in COMPARING:
            parts = [*node.args]
        for part in parts:
            yield from names_in(part, constants)


def who_compares(root: Path) -> set[tuple[str, str]]:
    """Files of a package, and what they compare, of all that do not own the names."""
    files = {path.relative_to(root): ast.parse(path.read_text()) for path in root.rglob("*.py")}
    assert files
    constants = {module_of(path): constants_of(tree) for path, tree in files.items()}
    found = set()
    for path, tree in files.items():
        known = dict(constants[module_of(path)])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                theirs = constants.get(node.module or "", {})
                known |= {
                    alias.asname or alias.name: theirs[alias.name]
                    for alias in node.names
                    if alias.name in theirs
                }
        if not path.as_posix().startswith(OWNERS):
            found |= {(path.as_posix(), name) for name in compared(tree, known)}
    return found


def module_of(path: Path) -> str:
    return ".".join(["gradsieve", *path.with_suffix("").parts])


def test_nobody_else_compares_a_topology_s_name():
    assert who_compares(SOURCES) == OTHER_WORDS


def test_a_file_that_does_is_found(tmp_path):
    for folder in ("topology", "exchange"):
        (tmp_path / folder).mkdir()
    source = 'LAST = "gather"\n\n\ndef is_last(way):\n    return way == LAST\n'
    for file in ("topology/own.py", "exchange/topology_names.py", "exchange/other.py"):
        (tmp_path / file).write_text(source)
    (tmp_path / "user.py").write_text(
        "from gradsieve.topology.own import LAST as word\n\nis_last = way == word\n"
    )
    assert who_compares(tmp_path) == {("exchange/other.py", "gather"), ("user.py", "gather")}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('state.way == "gather"', {"gather"}),
        ('"dense" != record["exchange"]', {"dense"}),
        ('way in ("two-shot", "hierarchical")', {"two-shot", "hierarchical"}),
        ('way not in {"dense-fp16", "sieve"}', {"dense-fp16"}),
        ('seconds = {"gather": 1.0, **others, "auto": 2.0}', {"gather"}),
        ('TOPOLOGIES["two-shot"].plan()', {"two-shot"}),
        ('TOPOLOGIES.get("two-shot")', {"two-shot"}),
        ('way.startswith("dense")', {"dense"}),
        ('match way:\n    case "gather" | "dense":\n        pass', {"gather", "dense"}),
        ('match way:\n    case ["gather", _]:\n        pass', {"gather"}),
        ('LAST = "hierarchical"\ndef f(way):\n    return way == LAST', {"hierarchical"}),
        ('A, B = "dense", "x"\nif way == A or way == B: pass', {"dense"}),
        ('KNOWN: tuple = ("gather",)\nway in KNOWN', {"gather"}),
        ('class Way:\n    last = "gather"\nway is Way.last', {"gather"}),
        ("engine.topology.now.name == other", {"engine.topology.now.name"}),
        ("self.topology.name == other", {"self.topology.name"}),
        ("record.exchange != before.exchange", {"record.exchange", "before.exchange"}),
        ("name == GATHER.name", {"GATHER.name"}),
        # Words alone are no comparison.
        ('attach(model, exchange="gather")', set()),
        ('require_word("start", word, ("dense", "sieve"))', set()),
        (
            'def f(way="gather"):\n    """two-shot"""\n    return "dense" if way else "gather"',
            set(),
        ),
        ('Known = Literal["gather", "dense"]', set()),
        ('A, B = "dense", "x"\nif way == B: pass', set()),
        ('way == "auto" or path.name == "gathered"', set()),
    ],
)
def test_every_way_to_compare_is_seen(source, found):
    tree = ast.parse(source)
    assert {*compared(tree, constants_of(tree))} == found
