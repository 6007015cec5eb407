"""Links between ranks on one machine: shaped ones in network namespaces, or loopback.

with open_link(ranks=2, link="1gbit") as link:
    for rank in range(2):
        subprocess.Popen(link.command(rank, ["python", "train.py"]))
"""

import importlib.util
import json
import os
import re
import select
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from gradsieve.runtime.units import parse_rate

MAX_RANKS = 200
MIN_RATE = 10_000
MAX_RATE = 30_000_000_000
MAX_ROUND_TRIP = 2.0
STARTUP_SECONDS = 10.0
TEARDOWN_SECONDS = 5.0

_MILLISECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*ms", re.ASCII)
_Self = TypeVar("_Self")


class LinkError(RuntimeError):
    """A shaped link could not be made; the message says what was found and what to do."""


def format_rate(rate: int) -> str:
    """Return `rate` (bits/s) in words: "1 Gbit/s", "2.5 Mbit/s"."""
    for unit, size in (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3)):
        if rate >= size:
            return f"{rate / size:.10g} {unit}"
    return f"{rate} bit/s"


def parse_link(text: str) -> tuple[int, float]:
    """Return rate, in bits per second, and round trip, in seconds: "20mbit", "20mbit+40ms".

    Raises:
        ValueError: `text` is no rate, the rate is too low, or no round trip follows the "+".
    """
    rate, plus, round_trip = text.partition("+")
    match = _MILLISECONDS.fullmatch(round_trip.strip().lower())
    if plus and match is None:
        raise ValueError(f'not a round trip: {round_trip!r}; write it as in "20mbit+40ms"')
    bits = parse_rate(rate)
    if bits < MIN_RATE:
        missing = '; write the unit, as in "100mbit"' if rate.strip().isdigit() else ""
        raise ValueError(
            f"{text!r} is {format_rate(bits)}, and a link has {format_rate(MIN_RATE)} or more"
            f"{missing}"
        )
    return bits, float(match[1]) / 1000 if match else 0.0


class _Closing(ABC):
    """The base of links: the end of a `with` block closes the link."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ShapedLink(_Closing):
    """A link of its own for every rank, joined by a bridge and shaped to `rate` each way.

    Every rank gets a network namespace with one interface, MTU 1500. Works as root and, without
    any rights, where the kernel allows unprivileged user namespaces; there the ranks see
    themselves as root. Without `round_trip` a link emulates the rate only; jitter and loss never.

    The link is up when the constructor returns. It ends at `close`, at the end of the `with`
    block, or when this process ends in whatever way; **processes still inside are then killed**.

    Args:
        ranks: number of ranks, 1 to 200.
        rate: bits per second, or text as for `parse_rate`; 10 kbit to 30 gbit.
        round_trip: seconds that packets take there and back, up to 2. A process carries them and
            takes some of the machine: keep to rates of 100 mbit and less.

    Raises:
        ValueError: `ranks`, `rate` or `round_trip` is out of range.
        LinkError: this machine does not let us make the link.
    """

    interface: str = "eth0"
    shaped = True

    def __init__(self, ranks: int, rate: str | int, round_trip: float = 0.0) -> None:
        _check_ranks(ranks)
        _check_round_trip(round_trip)
        self.ranks = ranks
        self.rate = _check_rate(rate)
        self.round_trip = round_trip
        late = f", {1000 * round_trip:g} ms round trip" if round_trip else ""
        self.words = f"{format_rate(self.rate)} each way (tbf){late}"
        """The description without the number of ranks."""
        self.description = f"{ranks} ranks, {self.words}"
        self._hub = _start_hub(ranks, self.rate, round_trip / 2)
        try:
            report = _read_report(self._hub, self.description)
        except BaseException:
            self._hub.kill()
            self.close()
            raise
        self.pid: int = report["pid"]
        self._namespaces: list[str] = report["namespaces"]
        self._addresses: list[str] = report["addresses"]

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in the namespace of `rank`.

        It becomes `argv` in place: pid, streams, signals and exit status are those of `argv`.
        """
        # Isolated and without site-packages: a quick start, and no settings of the caller's.
        python = [sys.executable, "-I", "-S", str(Path(__file__).with_name("enter.py"))]
        return [*python, str(self.pid), self._namespaces[self._checked(rank)], "--", *argv]

    def address(self, rank: int) -> str:
        """Return the IPv4 address of `rank`, which only the ranks of this link can reach."""
        return self._addresses[self._checked(rank)]

    def close(self) -> None:
        """Take the link down and kill what still runs in it. Closing again does nothing."""
        if self._hub.returncode is not None:
            return
        try:
            self._hub.communicate(timeout=TEARDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._hub.kill()
            self._hub.communicate()

    def _checked(self, rank: int) -> int:
        return _check_rank(rank, self.ranks)


class Loopback(_Closing):
    """All ranks on the loopback interface, used like `ShapedLink` but not shaped.

    Args:
        ranks: number of ranks, 1 to 200.
        reason: why the link is not shaped, for the description.

    Raises:
        ValueError: `ranks` is out of range.
    """

    interface: str = "lo"
    shaped = False
    rate: int | None = None
    round_trip = 0.0

    def __init__(self, ranks: int, reason: str) -> None:
        _check_ranks(ranks)
        self.ranks = ranks
        self.reason = reason
        self.words = f"loopback, not shaped: {reason}"
        self.description = self.words

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """Return `argv` as it is."""
        _check_rank(rank, self.ranks)
        return list(argv)

    def address(self, rank: int) -> str:
        """Return 127.0.0.1, which all ranks share."""
        _check_rank(rank, self.ranks)
        return "127.0.0.1"

    def close(self) -> None:
        """Do nothing: there is nothing to take down."""


Link: TypeAlias = ShapedLink | Loopback
UNSHAPED = "none"
"""The text that stands for bare loopback."""


def open_link(ranks: int, link: str) -> Link:
    """Return a `ShapedLink` where the machine allows one, else a `Loopback` that says why not.

    Args:
        ranks: number of ranks, 1 to 200.
        link: text as for `parse_link`, or `UNSHAPED`.

    Raises:
        ValueError: `ranks` or the rate is out of range.
    """
    if link == UNSHAPED:
        return Loopback(ranks, "no rate asked for")
    rate, round_trip = parse_link(link)
    try:
        return ShapedLink(ranks, rate, round_trip)
    except LinkError as error:
        return Loopback(ranks, str(error))


def require_link(ranks: int, link: str) -> None:
    """Raise ValueError where `open_link` would."""
    _check_ranks(ranks)
    if link != UNSHAPED:
        rate, round_trip = parse_link(link)
        _check_rate(rate)
        _check_round_trip(round_trip)


def _check_ranks(ranks: int) -> None:
    if not 1 <= ranks <= MAX_RANKS:
        raise ValueError(f"a link joins 1 to {MAX_RANKS} ranks, not {ranks}")


def _check_rank(rank: int, ranks: int) -> int:
    if not 0 <= rank < ranks:
        raise ValueError(f"no rank {rank} on this link; ranks are 0 to {ranks - 1}")
    return rank


def _check_rate(rate: str | int) -> int:
    bits = parse_rate(rate) if isinstance(rate, str) else rate
    if not MIN_RATE <= bits <= MAX_RATE:
        raise ValueError(
            f"a link is shaped to {format_rate(MIN_RATE)} up to {format_rate(MAX_RATE)}, "
            f"not {format_rate(bits)}"
        )
    return bits


def _check_round_trip(round_trip: float) -> None:
    if not 0 <= round_trip <= MAX_ROUND_TRIP:
        raise ValueError(f"a round trip is 0 to {MAX_ROUND_TRIP:g} s, not {round_trip:g} s")


def _start_hub(ranks: int, rate: int, delay: float) -> subprocess.Popen[str]:
    command = _hub_command(ranks, rate, delay)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C reaches the whole process group; the link has to outlast the ranks' ending.
            start_new_session=True,
        )
    except OSError as error:
        raise LinkError(f"cannot run this Python, {command[0]!r}: {error.strerror}") from error


def _hub_command(ranks: int, rate: int, delay: float) -> list[str]:
    if importlib.util.find_spec("pyroute2") is None:
        raise LinkError(
            "a shaped link needs pyroute2, which is not installed: pip install 'gradsieve[lab]'"
        )
    hub = str(Path(__file__).with_name("hub.py"))
    arguments = ["--ranks", str(ranks), "--rate", str(rate), "--owner", str(os.getpid())]
    arguments += ["--delay", str(delay)]
    return [sys.executable, hub, *arguments]


def _read_report(hub: subprocess.Popen[str], asked: str) -> dict[str, Any]:
    assert hub.stdout is not None
    ended_or_ready, _, _ = select.select([hub.stdout], [], [], STARTUP_SECONDS)
    line = hub.stdout.readline() if ended_or_ready else ""
    if line:
        report: dict[str, Any] = json.loads(line)
        return report
    hub.kill()
    _, errors = hub.communicate()
    answer = errors.strip() or "nothing"
    if not ended_or_ready:
        answer = f"nothing within {STARTUP_SECONDS:g} s, but on standard error: {answer}"
    raise LinkError(_refusal(asked, answer))


def _refusal(asked: str, answer: str) -> str:
    return (
        f"asked for {asked}; the system answered: {answer}. "
        "Run as root, or allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
        "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; "
        "in a container, the capability CAP_SYS_ADMIN)"
    )
