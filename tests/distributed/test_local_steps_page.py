"""The complete scripts of the page on local steps run, and their replicas agree."""

import os
import re
import runpy
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import leave_group, run_ranks

PAGE = Path(__file__).parents[2] / "docs" / "local-steps.md"
SCRIPT = r"<!-- A test runs this script on {count} ranks. -->\n```python\n(.*?)```"


def script_for(count, folder):
    (script,) = re.findall(SCRIPT.format(count=count), PAGE.read_text(), re.DOTALL)
    path = folder / "script.py"
    path.write_text(script)
    return str(path)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(script, port):
    """As under torchrun."""
    place = {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    leave_group()
    names = runpy.run_path(script)
    weights = [p.to_local() if hasattr(p, "to_local") else p for p in names["net"].parameters()]
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    return flat.tolist(), names["outer"].inner_steps


def test_shards_within_a_node_and_local_steps_between(tmp_path):
    found = run_ranks(4, run, script_for("four", tmp_path), free_port())
    (first, steps), (second, _), (third, _), (fourth, _) = found
    assert steps == 30
    assert (first, second) == (third, fourth), "replicas hold the same shard"
    assert first != second


def test_one_of_three_ranks_leaves(tmp_path):
    found = run_ranks(3, run, script_for("three", tmp_path), free_port())
    (first, steps), (second, _), (_, fewer) = found
    assert first == second
    assert (steps, fewer) == (30, 10)
