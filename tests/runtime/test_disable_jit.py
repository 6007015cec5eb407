"""NUMBA_DISABLE_JIT=1: words instead of a kernel that cannot run."""

from processes import printed_by

SCRIPT = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.testing._internal.distributed.fake_pg import FakeStore
from typer.testing import CliRunner

import gradsieve as gs
from gradsieve.lab.cli import app

assert CliRunner().invoke(app, ["--help"]).exit_code == 0
indices = torch.arange(3, dtype=torch.int32)
dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
model = DDP(nn.Linear(64, 64))
for use in (
    lambda: gs.attach(model),
    lambda: gs.select(torch.ones(100), torch.zeros(100), 0.5),
    lambda: gs.measure(torch.ones(100)),
    lambda: gs.encode(indices, torch.ones(3), 10),
    lambda: gs.encode(indices, torch.ones(3), 10, mode="bfloat16"),
    lambda: gs.encode(indices, torch.ones(3), 10, mode="float32"),
):
    try:
        use()
    except gs.SieveError as error:
        assert "unset" in str(error)
        print(str(error).split()[0])
dist.destroy_process_group()
"""


def test_kernels_say_what_to_unset():
    printed = printed_by("-c", SCRIPT, NUMBA_DISABLE_JIT="1")
    assert printed.split() == ["NUMBA_DISABLE_JIT"] * 6
