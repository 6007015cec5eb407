import socket

import pytest

from gradsieve.lab.link import Counters, read_counters

PAYLOAD = 100_000


def test_loopback_traffic_is_counted_in_both_directions():
    before = read_counters("lo")
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(bytes(PAYLOAD))
        with server.accept()[0] as connection:
            while connection.recv(65536):
                pass
    grown = read_counters("lo") - before
    assert grown.sent_bytes > PAYLOAD
    assert grown.received_bytes > PAYLOAD


def test_an_unknown_interface_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'eth77'.*\blo\b"):
        read_counters("eth77")


def test_the_difference_of_two_readings():
    assert Counters(7, 11) - Counters(2, 4) == Counters(5, 7)
