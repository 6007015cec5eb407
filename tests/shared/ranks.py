"""Real ranks for tests: processes with a Gloo group over loopback.

They are forked from a server that has imported torch once, and are watched by nobody but the test,
so that a rank may die without the others being ended for it.
"""

import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 60
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["warm"])


def start_server() -> None:
    """Start the server, if it is not running, where it finds its preload."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class RankFailed(AssertionError):
    """A rank raised what the test did not expect; its traceback is the message."""


def run_ranks(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run function(*args) on `count` ranks; its results in rank order, None of a rank that died.

    The function must be importable. Raises RankFailed, or TimeoutError after SECONDS.
    """
    start_server()
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        pipes, processes = [], []
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            work = (rank, count, store, sender, function, args)
            process = context.Process(target=on_one_rank, args=work)
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return [result_of(pipe) for pipe in pipes]
        finally:
            for process in processes:
                if process.is_alive():
                    process.join(2)
                if process.is_alive() and process.pid:
                    os.kill(process.pid, signal.SIGKILL)
                process.join()


def leave_group() -> None:
    """Destroy the group of the test on all ranks.

    A rank that closes its connections while another one is still making its own lets that one fail.
    """
    dist.barrier()
    dist.destroy_process_group()


def result_of(pipe: Connection) -> Any:
    if not wait([pipe], SECONDS):
        raise TimeoutError(f"a rank gave no result within {SECONDS} s")
    try:
        outcome, result = pipe.recv()
    except EOFError:
        return None
    if outcome == "raised":
        raise RankFailed(result)
    return result


def on_one_rank(
    rank: int,
    count: int,
    store: str,
    pipe: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, count),
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=SECONDS / 3),
    )
    try:
        answer = ("returned", function(*args))
        pickle.dumps(answer)
    except BaseException:
        answer = ("raised", traceback.format_exc())
    pipe.send(answer)
    pipe.close()
    # Destroying a group whose peer has died would wait for it.
    os._exit(0)
