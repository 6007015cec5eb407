"""However a link ends, its hub, its namespaces and what ran inside are gone."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import gradsieve.lab.link as link_package
from gradsieve.lab.link import ShapedLink
from gradsieve.runtime import units

pytestmark = pytest.mark.usefixtures("namespaces")

SECONDS = 8.0
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}

# A rank that reports its pid and its network namespace, and would stay for long.
RANK = """
import os, time
print(os.getpid(), os.stat("/proc/self/ns/net").st_ino, flush=True)
time.sleep(60)
"""

# An owner that holds a link until a signal ends it. With "fork", it has a child of its own, which
# inherits the pipe to the hub.
OWNER = f"""
import json, os, signal, subprocess, sys, time
from gradsieve.lab.link import ShapedLink

# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

RANK = {RANK!r}
with ShapedLink(ranks=2, rate="1gbit") as link:
    ranks = [
        subprocess.Popen(
            link.command(rank, [sys.executable, "-c", RANK]), stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    reports = [list(map(int, rank.stdout.readline().split())) for rank in ranks]
    child = os.fork() if "fork" in sys.argv else None
    if child != 0:
        print(json.dumps([link.pid, reports, child]), flush=True)
    time.sleep(60)
"""


@dataclass
class Traces:
    """What a link consists of: processes, and namespaces by their inode numbers."""

    processes: list[int]
    namespaces: list[int]

    def left(self) -> list[str]:
        running = [f"process {pid}" for pid in self.processes if is_running(pid)]
        used = [f"namespace {inode}" for inode in self.namespaces if inode in inodes_in_use()]
        return running + used


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def inodes_in_use() -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add((process / "ns/net").stat().st_ino)
    return found


def start_rank(link: ShapedLink, rank: int) -> tuple["subprocess.Popen[str]", Traces]:
    process = subprocess.Popen(
        link.command(rank, [sys.executable, "-c", RANK]), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid, inode = map(int, process.stdout.readline().split())
    return process, Traces([link.pid, pid], [inode])


def start_owner(light_imports: dict[str, str], *arguments: str, python=sys.executable, **options):
    owner = subprocess.Popen(
        [python, "-c", OWNER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=light_imports,
        cwd="/",
        **options,
    )
    hub, ranks, child = json.loads(owner.stdout.readline())
    traces = Traces([hub, *(pid for pid, _ in ranks)], [inode for _, inode in ranks])
    assert len(traces.left()) == 5
    return owner, traces, child


@pytest.fixture(scope="module")
def light_imports():
    """Return an environment in which gradsieve is its link package only, and any user may read it.

    An owner then starts without torch, and under a Python that has no torch.
    """
    pyroute2 = Path(importlib.util.find_spec("pyroute2").origin).parent
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory, "gradsieve")
        shutil.copytree(Path(link_package.__file__).parent, package / "lab" / "link")
        (package / "runtime").mkdir()
        shutil.copy(units.__file__, package / "runtime")
        for room in (package, package / "lab", package / "runtime"):
            (room / "__init__.py").touch()
        Path(directory).chmod(0o755)
        path = os.pathsep.join([directory, str(pyroute2.parent)])
        yield {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def python_for_nobody(environment: dict[str, str]) -> str:
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import pyroute2, gradsieve.lab.link"]
            options = {"env": environment, "cwd": "/", "stderr": subprocess.DEVNULL}
            if subprocess.run(command, check=False, **options, **NOBODY).returncode == 0:
                return python
    return pytest.skip("no Python and pyroute2 here that another user may run")


def nobody_may_unshare(python: str) -> bool:
    script = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    return subprocess.run([python, "-c", script], check=False, cwd="/", **NOBODY).returncode == 0


def assert_gone(traces: Traces) -> None:
    deadline = time.monotonic() + SECONDS
    while (left := traces.left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_the_end_of_the_block_ends_everything():
    with ShapedLink(ranks=2, rate="1gbit") as link:
        process, traces = start_rank(link, 0)
        assert len(traces.left()) == 3
    assert process.wait(timeout=SECONDS) == -signal.SIGKILL
    assert_gone(traces)
    link.close()


def test_an_exception_ends_everything():
    started = []

    def fail_inside() -> None:
        with ShapedLink(ranks=2, rate="1gbit") as link:
            started.append(start_rank(link, 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    process, traces = started[0]
    process.wait(timeout=SECONDS)
    assert_gone(traces)


def test_nobody_joins_a_link_that_has_ended():
    with ShapedLink(ranks=1, rate="1gbit") as link:
        command = link.command(0, ["true"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 126
    assert "has it ended?" in done.stderr


def test_a_hub_that_was_killed_leaves_nothing_to_close():
    with ShapedLink(ranks=1, rate="1gbit") as link:
        os.kill(link.pid, signal.SIGKILL)
    assert_gone(Traces([link.pid], []))


def test_a_link_outlives_the_thread_that_made_it():
    links = []
    maker = threading.Thread(target=lambda: links.append(ShapedLink(ranks=1, rate="1gbit")))
    maker.start()
    maker.join()
    with links[0] as link:
        assert subprocess.run(link.command(0, ["true"]), check=False).returncode == 0


def test_ctrl_c_ends_everything(light_imports):
    owner, traces, _ = start_owner(light_imports)
    os.killpg(owner.pid, signal.SIGINT)
    owner.wait(timeout=SECONDS)
    assert_gone(traces)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_owner_that_is_killed_takes_everything_with_it(light_imports, number):
    owner, traces, _ = start_owner(light_imports)
    owner.send_signal(number)
    owner.wait(timeout=SECONDS)
    assert_gone(traces)


def test_a_child_of_the_owner_does_not_hold_the_link(light_imports):
    owner, traces, child = start_owner(light_imports, "fork")
    try:
        owner.kill()
        owner.wait(timeout=SECONDS)
        assert_gone(traces)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_user_without_rights_has_links_too(light_imports):
    if os.geteuid() != 0:
        pytest.skip("not root: the other tests run without rights already")
    python = python_for_nobody(light_imports)
    if not nobody_may_unshare(python):
        pytest.skip("the kernel refuses unprivileged user namespaces")
    owner, traces, _ = start_owner(light_imports, python=python, **NOBODY)
    owner.kill()
    owner.wait(timeout=SECONDS)
    assert_gone(traces)
