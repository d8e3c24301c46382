"""A small server for the unix socket and for probes: uvicorn, inside this event loop.

Of a unix socket it tells the application who connected: ``scope["llmspell.peer"]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmspell_dist.sidecar.auth.peers import Peer
from llmspell_dist.sidecar.errors import HeadersTooLargeError
from llmspell_dist.sidecar.problems import PROBLEM, problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from llmspell_dist.sidecar.settings import Limits

__all__ = ["PlainServer", "listen_tcp", "listen_unix"]

_BACKLOG: Final = 512
_REFUSED: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: %s\r\ncontent-length: %d\r\n\r\n"
)


class _Protocol(HttpToolsProtocol):
    """One connection, whose peer the application learns, and whose requests do not come in drops.

    uvicorn itself waits for the head of a request without end, keeps one of any size, and takes any
    number of connections. Here one too many takes the place of the one that has rested longest.
    """

    head_s: float
    head_bytes: int
    most: int
    opened: dict[_Protocol, None]
    """All of one server; last stands whose request began last."""
    _head_due: asyncio.TimerHandle | None = None
    _head_size = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._make_room()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            self.app = _with_peer(self.app, Peer.of(sock))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Refuse a head that has no end: it is kept until it is whole."""
        if self._head_due is not None:
            if self._head_size > self.head_bytes:
                self._refuse_head()
                return
            self._head_size += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.opened.pop(self, self) is None:
            self.opened[self] = None  # the last of those that rest
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._expect_no_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.opened.pop(self, None)
        self._expect_no_head()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Let the one go that rests longest, or this one if all are at work."""
        if len(self.opened) >= self.most:
            rests = (one for one in self.opened if one.rests)
            going = next(rests, self)
            self.opened.pop(going, None)
            going.transport.abort()
            if going is self:
                return
        self.opened[self] = None

    @property
    def rests(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.call_later(self.head_s, self.transport.abort)

    def _refuse_head(self) -> None:
        problem = problem_of(HeadersTooLargeError(None, self.head_bytes))
        body = json.dumps(problem.document).encode()
        self._expect_no_head()
        self.transport.write(_REFUSED % (PROBLEM.encode(), len(body)) + body)
        self.transport.close()

    def _expect_no_head(self) -> None:
        self._head_size = 0
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


def _with_peer(app: ASGIApp, peer: Peer) -> ASGIApp:
    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        scope["llmspell.peer"] = peer
        await app(scope, receive, send)

    return told


class _Server(uvicorn.Server):
    """Without signal handlers: who runs it has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class PlainServer:
    """Serves an application on a socket that listens already, to so many connections at once."""

    def __init__(
        self, app: ASGIApp, sock: socket.socket, limits: Limits, *, connections: int
    ) -> None:
        self._sock = sock
        own = {
            "head_s": limits.header_s,
            "head_bytes": limits.header_bytes,
            "most": connections,
            "opened": {},
        }
        config = uvicorn.Config(
            app,
            http=type("_Limited", (_Protocol,), own),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.header_s),
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
        if self._task.done():
            self._task.result()

    async def stop(self, within_s: float) -> None:
        """Take nothing new, answer what is there, end."""
        if self._task is None:
            return
        self._server.should_exit = True
        self._server.config.timeout_graceful_shutdown = max(1, int(within_s))
        await asyncio.wait([self._task], timeout=within_s + 1)
        self._sock.close()


def listen_tcp(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; `OSError` says what stands in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # Connections have it from here: head and body of a small answer are two writes, and the second
    # would wait for the client's delayed acknowledgement of the first.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listen_unix(path: str) -> socket.socket:
    """Return a socket bound to a path that only this user and its group may connect to.

    A socket that a dead process left there is replaced; one that is served is not (`OSError`).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        sock.bind(path)
        Path(path).chmod(0o660)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead(path: str) -> None:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        Path(path).unlink()
    else:
        raise OSError(f"{path} is served by another process")
    finally:
        probe.close()
