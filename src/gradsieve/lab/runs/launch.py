"""Start the nodes of a run, each in its place on the link, through torch's elastic launcher."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
    """A rank of a run failed; the message ends with the last lines that its node wrote."""


def launch(config: RunConfig, link: Link, watch: Callable[[], None] = lambda: None) -> RunResult:
    """Run to the end, and call `watch` several times a second meanwhile.

    Raises:
        RunError: a rank ended with an error; the others are ended.
    """
    directory = Path(config.directory)
    path = config.save()
    for name in (RECORDS, HISTOGRAMS, RESULT):
        # Ranks that hold other shards record in folders of their own.
        for old in (directory / name, *directory.glob(f"rank*/{name}")):
            old.unlink(missing_ok=True)
    run_ranks(
        "gradsieve.lab.runs.train",
        path,
        config.ranks,
        link,
        watch,
        ranks_per_node=config.ranks_per_node,
    )
    return read_result(directory)


def run_ranks(
    module: str,
    path: Path,
    ranks: int,
    link: Link,
    watch: Callable[[], None] = lambda: None,
    *,
    ranks_per_node: int = 1,
) -> None:
    """Run ``python -m module path`` on each rank; logs lie beside `path`.

    Args:
        link: has a place for each node.
        ranks_per_node: divides `ranks`. Consecutive ranks share a node, and its log.

    Raises:
        RunError: as `launch`.
    """
    port = free_port() if not link.shaped else 29500
    nodes = ranks // ranks_per_node
    kind = "rank" if ranks_per_node == 1 else "node"
    logs = {f"{kind} {node}": path.parent / f"{kind}{node}.log" for node in range(nodes)}
    work = ["-m", module, str(path)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for node, log in enumerate(logs.values()):
            command = link.command(node, launcher(node, nodes, ranks_per_node, link, port, work))
            with log.open("wb") as output:
                processes.append(start(command, ranks, link.interface, output))
        wait_for_all(processes, logs, watch)
    finally:
        end(processes)


def launcher(
    node: int, nodes: int, ranks_per_node: int, link: Link, port: int, work: Sequence[str]
) -> list[str]:
    """Return the command that starts the ranks of a node, each of which does `work`."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={nodes}",
        f"--node-rank={node}",
        f"--nproc-per-node={ranks_per_node}",
        f"--master-addr={link.address(0)}",
        f"--master-port={port}",
        f"--local-addr={link.address(node)}",
        *work,
    ]


def start(
    command: list[str], ranks: int, interface: str, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    cores = max(1, usable_cores() // ranks)
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": str(cores),
        "PYTHONWARNINGS": "ignore",
        **KEPT_MEMORY,
    }
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def wait_for_all(
    processes: list[subprocess.Popen[bytes]], logs: dict[str, Path], watch: Callable[[], None]
) -> None:
    while True:
        watch()
        codes = [process.poll() for process in processes]
        failed = [(name, code) for name, code in zip(logs, codes, strict=True) if code]
        if failed:
            time.sleep(10 * POLL_SECONDS)
            name, code = failed[0]
            raise RunError(
                f"{name} ended with status {code}. The end of {logs[name]}:\n"
                f"{last_lines(logs[name])}"
            )
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_SECONDS)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the processes that still run; a launcher that is asked to end ends its ranks."""
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
