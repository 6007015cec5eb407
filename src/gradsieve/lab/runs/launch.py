"""Start the ranks of a run, each in its place on the link, through torch's elastic launcher."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gradsieve.lab.link import Link
from gradsieve.lab.runs.config import RESULT, RunConfig, RunResult, read_result
from gradsieve.recording.files import HISTOGRAMS, RECORDS
from gradsieve.runtime.threads import usable_cores

POLL_SECONDS = 0.1
END_SECONDS = 5.0
LAST_LINES = 15
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Without these, glibc returns an optimizer's temporaries to the system in one run and keeps them
in the next. Page faults then take 10 ms of a step, or nothing, whatever the method."""


class RunError(RuntimeError):
    """A rank of a run failed; the message ends with the last lines that it wrote."""


def launch(config: RunConfig, link: Link, watch: Callable[[], None] = lambda: None) -> RunResult:
    """Run to the end, and call `watch` several times a second meanwhile.

    Raises:
        RunError: a rank ended with an error; the others are ended.
    """
    directory = Path(config.directory)
    path = config.save()
    for old in (RECORDS, HISTOGRAMS, RESULT):
        (directory / old).unlink(missing_ok=True)
    run_ranks("gradsieve.lab.runs.train", path, config.ranks, link, watch)
    return read_result(directory)


def run_ranks(
    module: str, path: Path, ranks: int, link: Link, watch: Callable[[], None] = lambda: None
) -> None:
    """Run ``python -m module path`` on each rank; logs lie beside `path`. Raises as `launch`."""
    port = free_port() if not link.shaped else 29500
    logs = [path.parent / f"rank{rank}.log" for rank in range(ranks)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            with log.open("wb") as output:
                processes.append(start_rank(rank, ranks, module, path, link, port, output))
        wait_for_all(processes, logs, watch)
    finally:
        end(processes)


def start_rank(
    rank: int, ranks: int, module: str, path: Path, link: Link, port: int, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={ranks}",
        f"--node-rank={rank}",
        "--nproc-per-node=1",
        f"--master-addr={link.address(0)}",
        f"--master-port={port}",
        f"--local-addr={link.address(rank)}",
        "-m",
        module,
        str(path),
    ]
    cores = max(1, usable_cores() // ranks)
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": link.interface,
        "OMP_NUM_THREADS": str(cores),
        "PYTHONWARNINGS": "ignore",
        **KEPT_MEMORY,
    }
    return subprocess.Popen(
        link.command(rank, command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def wait_for_all(
    processes: list[subprocess.Popen[bytes]], logs: list[Path], watch: Callable[[], None]
) -> None:
    while True:
        watch()
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            time.sleep(10 * POLL_SECONDS)
            raise RunError(
                f"rank {failed[0]} ended with status {codes[failed[0]]}. The end of "
                f"{logs[failed[0]]}:\n{last_lines(logs[failed[0]])}"
            )
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_SECONDS)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the processes that still run; a launcher that is asked to end ends its rank."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    told = [line for line in lines if line.strip()]
    errors = [number for number, line in enumerate(told) if "Traceback" in line]
    start = errors[0] if errors else max(0, len(told) - LAST_LINES)
    return "\n".join(told[start : start + 2 * LAST_LINES])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
