"""The process that an emulated link lives in: namespaces, bridge, veth pairs, queues.

`hub.py --ranks 2 --rate 1000000000 --owner PID` (bits/s) builds

    rank 0: eth0 (tbf) ── port0 (tbf) ┐
    rank 1: eth0 (tbf) ── port1 (tbf) ┴ bridge

or, with `--delay 0.02` (seconds, one way), since the kernel may have no queue that delays,

    rank 0: eth0 (tbf) ── tunnel ┐
    rank 1: eth0 (tbf) ── tunnel ┴ this process

prints one line of JSON, and waits until its standard input ends or the process `PID` does. Every
namespace exists only as a file descriptor of this process. None has a name, and nothing is made in
the namespace that the hub was started in, so the kernel takes the link down however the hub ends.

The module is run by its path: `-m` would import gradsieve and with it torch, whose threads would
forbid a new user namespace. So it imports the standard library and pyroute2 only.
"""

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import select
import signal
import struct
import sys
import time
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PIDFD_OPEN = 434

INTERFACE = "eth0"
MTU = 1500
ETHERNET_HEADER = 14
SWEEP_SECONDS = 3.0

TUNNELS = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


def main() -> int:
    """Build the link, report it on standard output, hold it; return the exit status."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        owner = _pidfd(arguments.owner)
        # Otherwise the owner ended before it could be watched, and another may have its pid.
        if os.getppid() != arguments.owner:
            return 1
        relay = None
        if arguments.delay:
            namespaces, tunnels = _build_tunnels(arguments.ranks, arguments.rate)
            relay = Relay(tunnels, arguments.rate, arguments.delay)
        else:
            namespaces = _build(arguments.ranks, arguments.rate)
    except (OSError, NetlinkError) as error:
        print(error, file=sys.stderr)
        return 1
    try:
        print(json.dumps(_report(namespaces)), flush=True)
        _wait_for_end(owner, relay)
    finally:
        _end_members(namespaces)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Hold an emulated link until its owner ends.")
    parser.add_argument("--ranks", type=int, required=True, help="number of ranks")
    parser.add_argument("--rate", type=int, required=True, help="bits/s, each way, per rank")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, one way")
    parser.add_argument("--owner", type=int, required=True, help="pid of the parent process")
    return parser.parse_args()


def _build(ranks: int, rate: int) -> list[int]:
    """Return one file descriptor per rank: its network namespace, joined to the others."""
    home = _first_namespace()
    namespaces = []
    with IPRoute() as bridge_side:
        bridge_side.link("add", ifname="bridge", kind="bridge")
        bridge = _index(bridge_side, "bridge")
        bridge_side.link("set", index=bridge, state="up")
        for rank in range(ranks):
            namespaces.append(_new_namespace())
            _connect_rank(rank, rate, home)
            port = _index(bridge_side, f"port{rank}")
            _shape(bridge_side, port, rate)
            bridge_side.link("set", index=port, master=bridge, state="up")
    return namespaces


def _connect_rank(rank: int, rate: int, home: int) -> None:
    """Give the current namespace its interface; the other end goes to the bridge's namespace."""
    with IPRoute() as rank_side:
        rank_side.link("set", index=_index(rank_side, "lo"), state="up")
        peer = {"ifname": f"port{rank}", "net_ns_fd": home}
        rank_side.link("add", ifname=INTERFACE, kind="veth", peer=peer)
        interface = _index(rank_side, INTERFACE)
        _shape(rank_side, interface, rate)
        rank_side.addr("add", index=interface, address=_address(rank), prefixlen=24)
        rank_side.link("set", index=interface, state="up")


def _build_tunnels(ranks: int, rate: int) -> tuple[list[int], list[int]]:
    """Return two file descriptors per rank: its network namespace, and its packets."""
    _first_namespace()
    namespaces, tunnels = [], []
    for rank in range(ranks):
        namespaces.append(_new_namespace())
        # A tunnel belongs to the namespace that its device was opened in.
        tunnels.append(os.open(TUNNELS, os.O_RDWR | os.O_NONBLOCK))
        request = struct.pack("16sH22x", INTERFACE.encode(), IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(tunnels[-1], TUNSETIFF, request)
        with IPRoute() as rank_side:
            rank_side.link("set", index=_index(rank_side, "lo"), state="up")
            interface = _index(rank_side, INTERFACE)
            _shape(rank_side, interface, rate)
            rank_side.addr("add", index=interface, address=_address(rank), prefixlen=24)
            rank_side.link("set", index=interface, mtu=MTU, state="up")
    return namespaces, tunnels


class Relay:
    """Carries IPv4 packets from tunnel to tunnel, late, and no faster than a rank's line takes."""

    def __init__(self, tunnels: list[int], rate: int, delay: float) -> None:
        self.tunnels = tunnels
        self.rate, self.delay = rate, delay
        self.longest_queue = 8 * _limit(rate) / rate
        self.free_at = [0.0] * len(tunnels)
        """The time at which each rank's line will have sent what was taken so far."""
        self.waiting: list[tuple[float, int, int, bytes]] = []
        self.taken = 0

    def take(self, tunnel: int) -> None:
        """Take the packets that a rank has sent; those that a line's queue cannot hold are lost."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(tunnel, MTU)
                target = packet[19] - 1 if packet[0] >> 4 == 4 else -1
                if not 0 <= target < len(self.tunnels):
                    continue
                arrives = time.monotonic() + self.delay
                start = max(arrives, self.free_at[target])
                if start - arrives > self.longest_queue:
                    continue
                due = start + 8 * len(packet) / self.rate
                self.free_at[target] = due
                self.taken += 1
                heapq.heappush(self.waiting, (due, self.taken, target, packet))

    def deliver(self) -> float | None:
        """Deliver the packets that are due; return the seconds until the next one is."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self.waiting)
            with contextlib.suppress(OSError):
                os.write(self.tunnels[target], packet)
        return max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else None


def _shape(side: IPRoute, index: int, rate: int) -> None:
    side.tc("add", "tbf", index=index, rate=rate // 8, burst=_burst(rate), limit=_limit(rate))


def _burst(rate: int) -> int:
    """Return the bytes that may leave at once: what `rate` (bits/s) carries in 1 ms."""
    # A burst passes unshaped, so a fixed 64 KB, the largest GSO packet, would let whole frames
    # through for nothing at 20 Mbit/s. tbf cuts a GSO packet that is larger than the burst into
    # MTU-sized ones: cheap at low rates, but most of a core at 1 Gbit/s, where 1 ms is 125 KB and
    # GSO packets pass whole, as they do to a network card. TCP gets 957, 95.7 and 19.1 Mbit/s of
    # 1000, 100 and 20, which is all that the headers leave.
    return max(2 * (MTU + ETHERNET_HEADER), rate // 8 // 1000)


def _limit(rate: int) -> int:
    """Return the queue's length in bytes: 50 ms of `rate` (bits/s)."""
    # Less than a few GSO packets would drop the end of every one that tbf cuts.
    return max(256 * 1024, rate // 8 // 20)


def _address(rank: int) -> str:
    return f"10.77.0.{rank + 1}"


def _index(side: IPRoute, name: str) -> int:
    return int(side.link_lookup(ifname=name)[0])


def _first_namespace() -> int:
    """Leave the namespace we were started in; a process without the right becomes root first."""
    try:
        return _new_namespace()
    except PermissionError:
        _become_root()
        return _new_namespace()


def _new_namespace() -> int:
    """Move this process to a new network namespace and return its file descriptor."""
    _unshare(CLONE_NEWNET, "a network namespace")
    # Neighbour discovery would add packets to the counters that no rank has sent.
    for scope in ("all", "default"):
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _become_root() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _unshare(CLONE_NEWUSER, "a user namespace")
    # The kernel refuses the gid map until setgroups is given up.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _unshare(flags: int, what: str) -> None:
    # os.unshare came with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        raise _system_error(what)


def _pidfd(pid: int) -> int:
    # os.pidfd_open is missing where Python was built against the headers of an older kernel.
    descriptor: int = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_OPEN, pid, 0)
    if descriptor < 0:
        raise _system_error("a file descriptor for the owner")
    return descriptor


def _system_error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{os.strerror(code)}, on asking for {what}")


def _report(namespaces: list[int]) -> dict[str, object]:
    pid = os.getpid()
    return {
        "pid": pid,
        "interface": INTERFACE,
        "namespaces": [f"/proc/{pid}/fd/{namespace}" for namespace in namespaces],
        "addresses": [_address(rank) for rank in range(len(namespaces))],
    }


def _wait_for_end(owner: int, relay: Relay | None) -> None:
    # The pidfd is watched too because a process that the owner forked may hold the pipe open.
    # PR_SET_PDEATHSIG would fire as soon as the owner's starting thread ends.
    ends = {sys.stdin.fileno(), owner}
    tunnels = relay.tunnels if relay is not None else []
    while True:
        ready, _, _ = select.select(
            [*ends, *tunnels], [], [], relay.deliver() if relay is not None else None
        )
        if ends.intersection(ready):
            return
        for tunnel in ready:
            if relay is not None:
                relay.take(tunnel)


def _end_members(namespaces: list[int]) -> None:
    """Kill every process inside the ranks' namespaces: a member keeps its namespace alive."""
    # The paths that `enter` uses go first, so nobody joins unseen; the duplicates keep the
    # namespaces alive, as the kernel would give their inode numbers to others.
    kept = [os.dup(namespace) for namespace in namespaces]
    for namespace in namespaces:
        os.close(namespace)
    ours = {_identity(f"/proc/self/fd/{namespace}") for namespace in kept}
    deadline = time.monotonic() + SWEEP_SECONDS
    while (members := _members(ours)) and time.monotonic() < deadline:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _members(namespaces: set[tuple[int, int]]) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if _identity(f"/proc/{entry}/ns/net") in namespaces:
                found.append(int(entry))
    return found


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


if __name__ == "__main__":
    sys.exit(main())
