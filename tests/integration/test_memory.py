from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import hiredis
import pytest

from llmspell_dist.redis import memory
from llmspell_dist.redis.memory_socket import Connection

pytestmark = pytest.mark.integration


class Wire:
    """A blocking connection that pipelines requests and returns their replies."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, 10)
        self._reader = hiredis.Reader()

    def __call__(self, *requests: tuple[Any, ...]) -> list[Any]:
        self._socket.sendall(b"".join(hiredis.pack_command(request) for request in requests))
        return [self.read() for _ in requests]

    def send(self, *request: Any) -> None:
        self._socket.sendall(hiredis.pack_command(request))

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def one(self, *request: Any) -> Any:
        return self(request)[0]

    def read(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._reader.feed(data)
        return reply

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """A memory server of this test's own."""
    yield memory.acquire("test-memory")
    memory.release("test-memory")


@pytest.fixture
def wire(address: tuple[str, int]) -> Iterator[Wire]:
    """A connection to it."""
    wire = Wire(address)
    yield wire
    wire.close()


@pytest.fixture
def second(address: tuple[str, int]) -> Iterator[Wire]:
    """A second connection to it."""
    wire = Wire(address)
    yield wire
    wire.close()


BINARY = bytes(range(256)) * 3 + b"\r\n$-1\r\n"


def test_one_name_is_one_server_while_somebody_holds_it():
    """Everybody who asks for a name gets the same server; the last release ends it and its data."""
    first = memory.acquire("shared-name")
    assert memory.acquire("shared-name") == first
    assert memory.acquire("another-name") != first
    wire = Wire(first)
    wire.one("SET", "k", "v")
    memory.release("shared-name")
    assert wire.one("GET", "k") == b"v"
    memory.release("shared-name")
    with pytest.raises(ConnectionResetError):
        wire.one("GET", "k")
    wire.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(first, 5)
    memory.release("another-name")


def test_the_last_release_leaves_no_thread():
    """No thread and no name is left, even with connections and a blocked command open."""
    before = memory.names()
    wire = Wire(memory.acquire("short-lived"))
    wire.send("BLPOP", "q", "0")
    assert "llmspell-memory" in {thread.name for thread in threading.enumerate()}
    memory.release("short-lived")
    memory.release("short-lived")
    assert memory.names() == before
    wire.close()
    if not before:
        assert "llmspell-memory" not in {thread.name for thread in threading.enumerate()}


def test_values_are_binary_safe(wire):
    """Any bytes come back as they went in, from keys, fields, values and scripts."""
    wire.one("HSET", BINARY, BINARY, BINARY)
    assert wire.one("HGET", BINARY, BINARY) == BINARY
    script = "return {redis.call('HGET', KEYS[1], ARGV[1]), ARGV[1] .. ARGV[1]}"
    assert wire.one("EVAL", script, "1", BINARY, BINARY) == [BINARY, BINARY * 2]
    assert wire.one("HGET", BINARY, b"none") is None


def test_a_large_value_and_a_long_pipeline_pass(wire):
    """Ten megabytes and 2,000 requests in one write are nothing special."""
    large = b"x" * 10_000_000
    assert wire(("SET", "large", large), ("STRLEN", "large")) == [b"OK", 10_000_000]
    assert wire.one("GET", "large") == large
    replies = wire(*[("INCR", "n")] * 2_000)
    assert replies == list(range(1, 2_001))


def test_a_request_may_come_in_pieces(wire):
    """Where TCP cuts a request does not matter."""
    request: Any = ("SET", "k", BINARY)
    packed = hiredis.pack_command(request)
    for start in range(0, len(packed), 7):
        wire.send_raw(packed[start : start + 7])
    assert wire.read() == b"OK"
    assert wire.one("GET", "k") == BINARY


def test_errors_keep_the_servers_words(wire):
    """Error replies carry the code that a real server sends, and the connection goes on."""
    wire.one("SET", "string", "v")
    replies = wire(
        ("HGET", "string", "f"),
        ("EVALSHA", "0" * 40, "0"),
        ("NO-SUCH-COMMAND",),
        ("EVAL", "return redis.error_reply('CONFLICT expected=1')", "0"),
        ("PING",),
    )
    assert [str(reply).split()[0] for reply in replies] == [
        "WRONGTYPE",
        "NOSCRIPT",
        "ERR",
        "CONFLICT",
        "b'PONG'",
    ]


def test_the_handshake_of_the_lanes_works(wire):
    """HELLO, CLIENT SETNAME and ID, SELECT, SCRIPT LOAD and EVALSHA do what lanes rely on."""
    hello = wire.one("HELLO", "3", "SETNAME", "spell-1")
    assert hello[b"proto"] == 3
    assert wire.one("CLIENT", "GETNAME") == b"spell-1"
    assert isinstance(wire.one("CLIENT", "ID"), int)
    assert wire.one("SELECT", "3") == b"OK"
    sha = wire.one("SCRIPT", "LOAD", "return KEYS[1]")
    assert wire.one("EVALSHA", sha, "1", "k") == b"k"
    assert wire.one("SCRIPT", "FLUSH") == b"OK"
    assert "NOSCRIPT" in str(wire.one("EVALSHA", sha, "1", "k"))


def test_it_says_honestly_what_it_is(wire):
    """It tells of no persistence and no replicas, and never that a write reached either."""
    info = wire.one("INFO").decode()
    assert "server_name:fakeredis" in info
    assert "aof_enabled:0" in info
    assert wire.one("ROLE") == [b"master", 0, []]
    assert wire.one("WAIT", "1", "0") == 0
    assert wire.one("WAITAOF", "1", "0", "0") == [0, 0]
    assert wire.one("CONFIG", "GET", "maxmemory-policy") == [b"maxmemory-policy", b"noeviction"]
    assert "no configuration" in str(wire.one("CONFIG", "SET", "maxmemory", "1"))


def test_scripts_run_again_with_fresh_locals(wire):
    """A script that is compiled once sees its own arguments and nothing of the call before."""
    script = "local seen = ARGV[1] .. '-' .. tostring(rawget(_G, 'left')) return seen"
    assert [wire.one("EVAL", script, "0", x) for x in ("a", "b")] == [b"a-nil", b"b-nil"]


def test_a_killed_client_is_disconnected(wire, second):
    """CLIENT KILL ID closes that connection at once and no other."""
    victim = second.one("CLIENT", "ID")
    assert wire.one("CLIENT", "KILL", "ID", str(victim)) == 1
    with pytest.raises(ConnectionResetError):
        second.read()
    assert wire.one("PING") == b"PONG"


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_messages_arrive_at_once(wire, second, protocol):
    """A published message reaches a subscriber without polling; in RESP3 as a push."""
    second.one("HELLO", protocol)
    second.one("SUBSCRIBE", "c")
    assert wire.one("PUBLISH", "c", BINARY) == 1
    assert list(second.read()) == [b"message", b"c", BINARY]


def test_small_replies_do_not_wait_for_acknowledgements(monkeypatch):
    """Each connection has TCP_NODELAY; without it a second small reply waits 40 ms."""
    taken_in: list[socket.socket] = []
    made = Connection.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        taken_in.append(transport.get_extra_info("socket"))

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    wire = Wire(memory.acquire("without-delay"))
    wire.one("PING")
    assert [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in taken_in] == [1]
    wire.close()
    memory.release("without-delay")


def test_blocking_commands_do_not_hold_up_others(wire, second):
    """One client waits for an element while the other one works and then delivers it."""
    second.send("BLPOP", "q", "30")
    second.send("PING")
    assert wire(("INCR", "n"), ("RPUSH", "q", "element")) == [1, 1]
    assert [second.read(), second.read()] == [[b"q", b"element"], b"PONG"]


def test_a_forked_child_starts_without_the_parents_servers(address):
    """The child holds no name and no copy of a socket that would keep the port open."""
    pid = os.fork()
    if pid == 0:
        try:
            mine = memory.acquire("test-memory")
            wire = Wire(mine)
            fine = memory.names() == ["test-memory"] and mine != address
            fine = fine and wire.one("DBSIZE") == 0
            os._exit(0 if fine else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    wire = Wire(address)
    assert wire.one("PING") == b"PONG"
    wire.close()
