"""One HTTP/1.1 connection on a gevent socket: little enough that the sidecar is what is measured.

Locust's FastHttpUser spends as much CPU on a request as the sidecar does, and geventhttpclient, on
which it stands, half of that; on a machine with few cores they would be the limit. Here httptools
parses and nothing is copied twice, for a quarter of FastHttpUser's CPU.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import httptools

__all__ = ["Answer", "Connection", "ConnectionEndedError"]

_PIECE: Final = 65_536


class ConnectionEndedError(Exception):
    """The other side closed the connection before the answer was complete."""


class Answer:
    """A status, headers by lower-case name, and a body, as they come in."""

    __slots__ = ("complete", "headers", "parts", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.complete = False

    @property
    def body(self) -> bytes:
        """All of the body that has come."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self.parts.append(part)

    def on_message_complete(self) -> None:
        """Take note that this is all."""
        self.complete = True


class Connection:
    """Asks one server, one request after the other; made anew after whatever went wrong."""

    def __init__(self, host: str, token: str | None = None, *, patience_s: float = 30.0) -> None:
        """`host`: ``http(s)://name:port``; `token`: a bearer token; `patience_s`: of each read."""
        parts = urlsplit(host)
        self._tls = parts.scheme == "https"
        self._name = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._tls else 80)
        self._patience_s = patience_s
        self._head = f"host: {parts.netloc}\r\n".encode()
        if token:
            self._head += f"authorization: Bearer {token}\r\n".encode()
        self._sock: socket.socket | None = None

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and return the whole answer. It is never sent twice."""
        answer = Answer()
        try:
            self._sent(method, path, body, headers)
            parser = httptools.HttpResponseParser(answer)
            while not answer.complete:
                self._feed(parser)
            answer.status = parser.get_status_code()
            if answer.headers.get(b"connection") == b"close":
                self.close()
        except BaseException:  # a user that is killed too: half an answer is nobody's
            self.close()
            raise
        return answer

    def stream(self, path: str, headers: Mapping[str, str]) -> tuple[Answer, Iterator[bytes]]:
        """Send a request; return its status and headers, and the body's parts as they come."""
        answer = Answer()
        self._sent("GET", path, b"", headers)
        parser = httptools.HttpResponseParser(answer)
        while not answer.parts and not answer.complete:
            self._feed(parser)
        answer.status = parser.get_status_code()
        return answer, self._parts(answer, parser)

    def close(self) -> None:
        """End the connection; the next request makes a new one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _parts(self, answer: Answer, parser: httptools.HttpResponseParser) -> Iterator[bytes]:
        try:
            while True:
                parts, answer.parts = answer.parts, []
                yield from parts
                if answer.complete:
                    return
                self._feed(parser)
        finally:
            self.close()

    def _sent(self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None) -> None:
        lines = "".join([f"{name}: {value}\r\n" for name, value in (headers or {}).items()])
        length = f"content-length: {len(body)}\r\n" if body or method != "GET" else ""
        head = f"{method} {path} HTTP/1.1\r\n{lines}{length}".encode()
        if self._sock is None:
            self._sock = self._connected()
        self._sock.sendall(b"".join((head, self._head, b"\r\n", body)))

    def _feed(self, parser: httptools.HttpResponseParser) -> None:
        if self._sock is None:
            raise ConnectionEndedError("it is closed")
        data = self._sock.recv(_PIECE)
        if not data:
            raise ConnectionEndedError("the answer ended early")
        parser.feed_data(data)

    def _connected(self) -> socket.socket:
        sock = socket.create_connection((self._name, self._port), self._patience_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            return ssl.create_default_context().wrap_socket(sock, server_hostname=self._name)
        return sock
