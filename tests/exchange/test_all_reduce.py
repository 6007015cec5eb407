"""All-reduces without the sieve: ranks that die, stall or leave, and a process that ends then."""

import os
import select
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from gradsieve.exchange import stall
from gradsieve.exchange.all_reduce import AllReduce
from gradsieve.runtime.torch_private import default_store


def nothing():
    pass


def average():
    for half in (False, True):
        buffer = torch.randn(1000, generator=torch.Generator().manual_seed(dist.get_rank()))
        expected = (buffer.half() if half else buffer) / dist.get_world_size()
        dist.all_reduce(expected)
        all_reduce = AllReduce(buffer, dist.group.WORLD, half=half)
        assert not all_reduce.average.done()
        assert all_reduce.finish(nothing) is buffer
        assert all_reduce.average.value() is buffer
        assert torch.equal(buffer, expected.float())


def test_the_buffer_holds_the_mean_and_the_future_is_done():
    run_ranks(3, average)


def stalls():
    """Rank 1 takes part when the others have looked around twice."""
    stall.STALL = 0.05
    rank, store, looked = dist.get_rank(), default_store(), []
    buffer = torch.full((5,), float(rank))
    if rank == 1:
        store.wait(["rank 0 looked", "rank 2 looked"])
    all_reduce = AllReduce(buffer, dist.group.WORLD, half=False)

    def look():
        looked.append(all_reduce.average.done())
        if len(looked) == 2:
            store.set(f"rank {rank} looked", "")

    all_reduce.finish(look)
    assert buffer.tolist() == [1.0] * 5
    assert not any(looked)


def test_who_waits_for_a_late_rank_looks_around():
    run_ranks(3, stalls)


def loses_a_rank():
    # A rank that died earlier would fail those that still connect.
    store, rank = default_store(), dist.get_rank()
    store.set(f"rank {rank} has connected", "")
    if rank == 1:
        store.wait([f"rank {other} has connected" for other in range(3)])
        os.kill(os.getpid(), signal.SIGKILL)
    start, buffer = time.monotonic(), torch.ones(5)
    all_reduce = AllReduce(buffer, dist.group.WORLD, half=True)
    with pytest.raises(RuntimeError, match="onnection"):
        all_reduce.finish(nothing)
    assert not all_reduce.average.done()
    assert buffer.tolist() == [1.0] * 5
    return time.monotonic() - start


def test_a_rank_that_dies_fails_the_others_soon():
    seconds = run_ranks(3, loses_a_rank)
    assert seconds[1] is None
    assert max(seconds[0], seconds[2]) < 10


def leaves(path):
    """Rank 0 leaves, and ends as processes do; rank 1 never takes part, and ends when told."""
    rank = 0 if os.fork() else 1
    store, patience = dist.FileStore(path, 2), timedelta(seconds=30)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=patience)
    if rank == 1:
        sys.stdin.read()
        os._exit(0)
    stall.STALL = 0.05
    all_reduce = AllReduce(torch.ones(5), dist.group.WORLD, half=False)
    try:
        all_reduce.finish(interrupt)
    except KeyboardInterrupt:
        all_reduce.leave()
        print("left", flush=True)


def interrupt():
    raise KeyboardInterrupt


# What is registered first is run last, after gradsieve's.
SCRIPT = """
import atexit, sys
atexit.register(print, "ends", flush=True)
from test_all_reduce import leaves
leaves(sys.argv[1])
"""


def test_a_process_whose_wait_was_interrupted_ends_cleanly_after_the_other_ranks(tmp_path):
    """Before them it would be aborted, now and then, when its collective fails."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "shared"), os.environ.get("PYTHONPATH")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "store")],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "GLOO_SOCKET_IFNAME": "lo"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "left\n"
    told, _, _ = select.select([process.stdout], [], [], 1)
    assert not told, "it ends before rank 1 does"
    output, errors = process.communicate(timeout=60)
    assert output == "ends\n", errors
    assert process.returncode == 0, errors
