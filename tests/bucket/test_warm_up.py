"""What `attach` compiles ahead, in a process that has compiled nothing before."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from numba.core.registry import CPUDispatcher
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("gradsieve")]
    functions = {f for m in modules for f in vars(m).values() if isinstance(f, CPUDispatcher)}
    return {(f.py_func.__name__, str(s)) for f in functions for s in f.signatures}

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
for settings in (
    dict(exchange="gather"),
    dict(exchange="two-shot", values="bfloat16", threshold=gs.UnsentMean(2)),
    dict(rotation=16, values="float32"),
    dict(error_feedback=False),
):
    model = DDP(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    gs.attach(model, **settings)
    before = compiled()
    assert before
    for _ in range(3):
        model(torch.randn(8, 64)).square().mean().backward()
    print(sorted(compiled() - before))
dist.destroy_process_group()
"""


def test_steps_compile_nothing_that_attach_has_not(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["[]"] * 4
