import json
import os
import subprocess
import sys

import pytest

from gradsieve.lab.link import (
    LinkError,
    Loopback,
    ShapedLink,
    counters,
    format_rate,
    open_link,
    parse_link,
    shape,
)

RATE = 50_000_000
PAYLOAD = 2_000_000

# A rank reads counters.py by its path, so as not to wait for torch.
RECEIVE = """
import json, runpy, socket, sys, time
read_counters = runpy.run_path(sys.argv[1])["read_counters"]
with socket.create_server((sys.argv[2], 5000)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
received, start = len(connection.recv(1)), time.monotonic()
while chunk := connection.recv(65536):
    received += len(chunk)
seconds = time.monotonic() - start
print(json.dumps([received, seconds, read_counters("eth0").received_bytes]))
"""
SEND = """
import runpy, socket, sys
read_counters = runpy.run_path(sys.argv[1])["read_counters"]
with socket.create_connection((sys.argv[2], 5000), timeout=10) as connection:
    connection.sendall(bytes(int(sys.argv[3])))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
print(read_counters("eth0").sent_bytes)
"""

ANSWER = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    while word := connection.recv(1):
        connection.sendall(word)
"""
ASK = """
import socket, sys, time
seconds = []
with socket.create_connection((sys.argv[1], 5000), timeout=10) as connection:
    for _ in range(5):
        start = time.monotonic()
        connection.sendall(b"?")
        connection.recv(1)
        seconds.append(time.monotonic() - start)
print(min(seconds))
"""


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (1_000_000_000, "1 Gbit/s"),
        (2_500_000, "2.5 Mbit/s"),
        (64_000, "64 kbit/s"),
        (7, "7 bit/s"),
    ],
)
def test_a_rate_is_written_in_the_largest_unit(rate, words):
    assert format_rate(rate) == words


def test_a_link_is_a_rate_and_maybe_a_round_trip():
    assert parse_link("1gbit") == (1_000_000_000, 0.0)
    assert parse_link("20mbit+40ms") == (20_000_000, 0.04)
    for text in ("20mbit+", "20mbit+40", "20mbit+fast"):
        with pytest.raises(ValueError, match=r"20mbit\+40ms"):
            parse_link(text)
    with pytest.raises(ValueError, match="not a rate"):
        parse_link("+40ms")


def test_the_round_trip_is_limited():
    with pytest.raises(ValueError, match="0 to 2 s, not 3 s"):
        open_link(2, "1gbit+3000ms")


@pytest.mark.parametrize("ranks", [0, 201])
def test_the_number_of_ranks_is_limited(ranks):
    with pytest.raises(ValueError, match="1 to 200 ranks"):
        open_link(ranks, "1gbit")
    with pytest.raises(ValueError, match="1 to 200 ranks"):
        open_link(ranks, "none")


@pytest.mark.parametrize("rate", ["1kbit", "100gbit", 0])
def test_the_rate_is_limited(rate):
    with pytest.raises(ValueError, match=r"10 kbit/s up to 30 Gbit/s"):
        ShapedLink(2, rate)


def test_no_rate_gives_loopback():
    with open_link(2, "none") as link:
        assert isinstance(link, Loopback)
        assert not link.shaped
        assert link.interface == "lo"
        assert link.description == "loopback, not shaped: no rate asked for"
        assert link.address(1) == "127.0.0.1"
        assert link.command(1, ["true"]) == ["true"]
        with pytest.raises(ValueError, match="no rank 2"):
            link.address(2)


def hub_of(monkeypatch, script):
    command = [sys.executable, "-c", script]
    monkeypatch.setattr(shape, "_hub_command", lambda *arguments: command)


def test_a_refusal_gives_loopback_with_the_reason(monkeypatch):
    hub_of(monkeypatch, "raise SystemExit('Operation not permitted')")
    with open_link(2, "1gbit") as link:
        assert not link.shaped
        assert "asked for 2 ranks, 1 Gbit/s each way" in link.description
        assert "the system answered: Operation not permitted" in link.description
        assert "Run as root" in link.description


def test_a_hub_that_hangs_is_given_up_with_what_it_said(monkeypatch):
    monkeypatch.setattr(shape, "STARTUP_SECONDS", 0.5)
    hub_of(
        monkeypatch,
        "import sys, time; print('busy', file=sys.stderr, flush=True); time.sleep(60)",
    )
    with pytest.raises(LinkError, match=r"nothing within 0\.5 s, but on standard error: busy"):
        ShapedLink(2, "1gbit")


def test_a_python_that_cannot_run_is_a_link_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(LinkError, match="/nonexistent/python"):
        ShapedLink(2, "1gbit")


def require_tunnels():
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("no /dev/net/tun: no link with a round trip here")


@pytest.mark.usefixtures("namespaces")
def test_packets_are_under_way_for_the_round_trip():
    require_tunnels()
    with ShapedLink(ranks=2, rate="100mbit", round_trip=0.08) as link:
        assert link.description.endswith("80 ms round trip")
        python = [sys.executable, "-I", "-S", "-c"]
        server = subprocess.Popen(
            link.command(0, [*python, ANSWER, link.address(0)]), stdout=subprocess.PIPE, text=True
        )
        assert server.stdout.readline() == "listening\n"
        asked = subprocess.run(
            link.command(1, [*python, ASK, link.address(0)]),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=20,
        )
        server.wait(timeout=20)
    assert 0.08 <= float(asked.stdout) < 0.12


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("round_trip", [0.0, 0.02])
def test_a_transfer_runs_at_the_rate_and_is_counted_at_both_ends(round_trip):
    if round_trip:
        require_tunnels()
    with ShapedLink(ranks=2, rate=RATE, round_trip=round_trip) as link:
        assert link.shaped
        assert link.description.startswith("2 ranks, 50 Mbit/s each way (tbf)")
        python = [sys.executable, "-I", "-S", "-c"]
        arguments = [counters.__file__, link.address(0)]
        receiver = subprocess.Popen(
            link.command(0, [*python, RECEIVE, *arguments]), stdout=subprocess.PIPE, text=True
        )
        assert receiver.stdout.readline() == "listening\n"
        sender = subprocess.run(
            link.command(1, [*python, SEND, *arguments, str(PAYLOAD)]),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=20,
        )
        report, _ = receiver.communicate(timeout=20)
    received, seconds, received_on_wire = json.loads(report)
    assert received == PAYLOAD
    assert 30e6 <= 8 * received / seconds <= 60e6
    for on_wire in (received_on_wire, int(sender.stdout)):
        assert PAYLOAD < on_wire < 1.2 * PAYLOAD


@pytest.mark.usefixtures("namespaces")
def test_a_command_in_the_link_is_the_command_itself():
    with ShapedLink(ranks=1, rate="1gbit") as link:
        script = "import os, sys; print(os.getpid()); sys.exit(7)"
        process = subprocess.Popen(
            link.command(0, [sys.executable, "-c", script]), stdout=subprocess.PIPE, text=True
        )
        assert process.communicate(timeout=10)[0] == f"{process.pid}\n"
        assert process.returncode == 7


@pytest.mark.usefixtures("namespaces")
def test_a_command_that_does_not_exist_is_named():
    with ShapedLink(ranks=1, rate="1gbit") as link:
        done = subprocess.run(
            link.command(0, ["no-such-command"]), capture_output=True, text=True, check=False
        )
    assert done.returncode == 127
    assert "cannot run 'no-such-command'" in done.stderr
