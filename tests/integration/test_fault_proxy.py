"""The faults that other tests rely on strike exactly where they say."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import hiredis
import pytest
from fix_proxy import FaultProxy
from fix_servers import Server

from llmspell_dist import testing
from llmspell_dist.redis import memory

pytestmark = pytest.mark.integration


@pytest.fixture
def proxy(server: Server, fault_proxy: Callable[..., FaultProxy]) -> FaultProxy:
    """A proxy in front of every server of the table."""
    return fault_proxy(server)


class Connection:
    """A blocking client that sends many requests and reads what comes."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.socket = socket.create_connection(proxy.address, 5)
        self._reader = hiredis.Reader()

    def send(self, *requests: tuple[Any, ...]) -> None:
        self.socket.sendall(b"".join(hiredis.pack_command(request) for request in requests))

    def read(self) -> Any:
        """Return the next reply; ConnectionError when cut."""
        while (reply := self._reader.gets()) is False:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._reader.feed(data)
        return reply


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Callable[[], Connection]]:
    """Opens connections through the proxy."""
    made: list[Connection] = []

    def open_one() -> Connection:
        made.append(Connection(proxy))
        return made[-1]

    yield open_one
    for connection in made:
        connection.socket.close()


def test_without_a_fault_everything_passes(connect):
    """Large values and pipelines come through unchanged."""
    client, value = connect(), bytes(range(256)) * 4_000
    client.send(("SET", "k", value), ("GET", "k"), ("LRANGE", "none", "0", "-1"))
    assert [client.read() for _ in range(3)] == [b"OK", value, []]


def test_a_dropped_reply_belongs_to_an_applied_request(connect, proxy, server):
    """The request that matches is applied, its reply is lost, the ones before it are answered."""
    client = connect()
    client.send(("PING",))
    assert client.read() == b"PONG"
    proxy.drop_reply(b"INCR", after=1)
    client.send(("PING",), ("INCR", "n"), ("PING",), ("INCR", "n"))
    assert [client.read() for _ in range(3)] == [b"PONG", 1, b"PONG"]
    with pytest.raises(ConnectionError):
        client.read()
    assert server.call("GET", "n") == b"2"
    assert proxy.struck == 1
    again = connect()
    again.send(("INCR", "n"))
    assert again.read() == 3


def test_a_request_that_is_cut_before_is_never_applied(connect, proxy, server):
    """What stands before it in the pipeline is applied and answered, it and the rest is not."""
    proxy.cut_before(b"SET")
    client = connect()
    client.send(("INCR", "n"), ("SET", "n", "9"), ("INCR", "n"))
    assert client.read() == 1
    with pytest.raises(ConnectionError):
        client.read()
    assert server.call("GET", "n") == b"1"


def test_data_is_cut_at_the_given_byte(connect, proxy):
    """The reply ends in its middle."""
    proxy.limit_data(5)
    client = connect()
    client.send(("ECHO", "x" * 100))
    received = b""
    while piece := client.socket.recv(100):
        received += piece
    assert received == b"$100\r"


def test_replies_can_come_in_slices(connect, proxy):
    """Every piece has the given size, and together they are the reply."""
    proxy.slicer(3)
    client = connect()
    client.send(("ECHO", "hello world"), ("PING",))
    assert [client.read(), client.read()] == [b"hello world", b"PONG"]


def test_a_half_open_connection_says_nothing_until_it_is_cleared(connect, proxy):
    """Neither side learns of it; afterwards what was held back arrives."""
    client = connect()
    client.send(("PING",))
    assert client.read() == b"PONG"
    proxy.half_open()
    client.send(("ECHO", "late"))
    client.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.read()
    proxy.clear()
    client.socket.settimeout(5)
    assert client.read() == b"late"


def test_all_connections_can_be_reset_and_the_port_closed(connect, proxy):
    """reset_peer cuts what is open; down refuses more; up is on the same port again."""
    clients = [connect(), connect()]
    for client in clients:
        client.send(("PING",))
        assert client.read() == b"PONG"
    assert proxy.reset_peer() == 2
    for client in clients:
        with pytest.raises(ConnectionError):
            client.read()
    proxy.down()
    with pytest.raises(ConnectionRefusedError):
        connect()
    proxy.up()
    client = connect()
    client.send(("PING",))
    assert client.read() == b"PONG"


def test_a_closed_port_is_given_to_nobody_else(connect, proxy):
    """Not even as the near end of a connection: else it could not be opened again."""
    proxy.down()
    for _ in range(3):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(proxy.address)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(proxy.address, 5)
    proxy.up()
    connect().send(("PING",))


def test_users_get_both_kinds_of_server_for_their_own_tests():
    """The public helpers give a URL and end what they started with the block."""
    before = memory.names()
    with testing.memory_url() as url, testing.memory_url("named") as named:
        assert url.startswith("memory://")
        assert named == "memory://named"
        assert len(memory.names()) == len(before) + 2
    assert memory.names() == before
    with testing.embedded_server(config={"maxmemory": "32mb"}) as server:
        assert server.status().answers
        assert server.url.startswith("unix://")
        folder = server.path
    assert server.pid is None
    assert not folder.exists()
