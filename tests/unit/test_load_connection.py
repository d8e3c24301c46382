"""The load tests' HTTP connection, over a server that answers as it is told, piece by piece."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: "1-0"\r\n\r\nok'


@pytest.fixture(autouse=True)
def load_tests_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the load tests importable, and of the checkout nothing else: tox tests the wheel."""
    (tmp_path / "loadtests").symlink_to(ROOT / "loadtests")
    monkeypatch.syspath_prepend(str(tmp_path))


class Server:
    """Takes connections one after the other; each answers the requests that are listed for it."""

    def __init__(self, connections: list[list[list[bytes]]]) -> None:
        self.requests: list[list[bytes]] = []
        self._connections = connections
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answers in self._connections:
            sock, _ = self._listening.accept()
            seen: list[bytes] = []
            self.requests.append(seen)
            with sock:
                for pieces in answers:
                    seen.append(_request(sock))
                    for piece in pieces:
                        sock.sendall(piece)

    def close(self) -> None:
        self._thread.join(10)
        self._listening.close()


def _request(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name == b"content-length":
            length = int(value)
    while len(body) < length:
        body += sock.recv(65_536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """A function that starts a server; it ends with the test."""
    servers: list[Server] = []

    def start(*connections: list[list[bytes]]) -> Server:
        servers.append(Server([*connections]))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_requests_of_one_user_share_a_connection(serve: Any) -> None:
    """Method, path, headers, token and body arrive; the second request needs no new connection."""
    from loadtests.connection import Connection

    server = serve([[PLAIN], [b"HTTP/1.1 204 No Content\r\n\r\n"]])
    connection = Connection(server.host, "s3cret")
    first = connection.ask("PUT", "/v1/a", b'{"x":1}', {"content-type": "application/json"})
    assert (first.status, first.body, first.headers[b"etag"]) == (200, b"ok", b'"1-0"')
    second = connection.ask("GET", "/v1/b")
    assert (second.status, second.body) == (204, b"")
    connection.close()
    ((put, get),) = server.requests
    assert put.startswith(b"PUT /v1/a HTTP/1.1\r\ncontent-type: application/json\r\n")
    assert b"\r\nauthorization: Bearer s3cret\r\n" in put
    assert put.endswith(b'\r\n\r\n{"x":1}')
    assert get.startswith(b"GET /v1/b HTTP/1.1\r\n")
    assert b"content-length" not in get


def test_an_answer_may_come_in_any_pieces(serve: Any) -> None:
    """Byte by byte, and in chunks."""
    from loadtests.connection import Connection

    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    server = serve([[PLAIN[at : at + 1] for at in range(len(PLAIN))], [chunked]])
    connection = Connection(server.host)
    assert connection.ask("GET", "/").body == b"ok"
    assert connection.ask("GET", "/").body == b"abc"
    connection.close()


def test_an_answer_that_breaks_off_is_an_error_and_nothing_is_sent_twice(serve: Any) -> None:
    """The request after it is made on a new connection."""
    from loadtests.connection import Connection, ConnectionEndedError

    server = serve([[PLAIN[:-1]]], [[PLAIN]])
    connection = Connection(server.host)
    with pytest.raises(ConnectionEndedError):
        connection.ask("POST", "/count")
    assert connection.ask("GET", "/").body == b"ok"
    connection.close()
    assert [len(seen) for seen in server.requests] == [1, 1]


def test_a_connection_that_the_server_ends_is_made_anew(serve: Any) -> None:
    """`connection: close` is heeded before the next request."""
    from loadtests.connection import Connection

    closing = PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    server = serve([[closing]], [[PLAIN]])
    connection = Connection(server.host)
    assert [connection.ask("GET", "/").body for _ in range(2)] == [b"ok", b"ok"]
    connection.close()


def test_a_stream_gives_what_has_come(serve: Any) -> None:
    """Parts as they arrive, until the server ends it."""
    from loadtests.connection import Connection

    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    server = serve([[head, b"4\r\na\n\nb\r\n", b"3\r\nc\n\n\r\n", b"0\r\n\r\n"]])
    connection = Connection(server.host)
    answer, parts = connection.stream("/v1/watch/custom:x", {"accept": "text/event-stream"})
    assert answer.status == 200
    assert b"".join(parts) == b"a\n\nbc\n\n"
