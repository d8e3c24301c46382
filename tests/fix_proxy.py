"""A fault proxy between client and server, in Toxiproxy's words.

Faults strike at a request, a reply or a byte that is counted, never after a time, so a test sees
the same thing on every run. Counts begin when the fault is armed: a handshake before that does not
matter. The proxy runs in a thread of its own and so serves blocking clients too.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from fix_ports import HeldPort

_T = TypeVar("_T")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


def frame_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Return where the RESP value that begins at `start` ends, None if it is incomplete."""
    line = data.find(b"\r\n", start)
    if line < 0:
        return None
    kind, rest, pos = data[start : start + 1], data[start + 1 : line], line + 2
    if kind in b"$=!" and rest != b"-1":
        end = pos + int(rest) + 2
        return end if end <= len(data) else None
    if kind in b"*~>%" and rest != b"-1":
        for _ in range(int(rest) * (2 if kind == b"%" else 1)):
            end_of_item = frame_end(data, pos)
            if end_of_item is None:
                return None
            pos = end_of_item
    return pos


def _frames(buffer: bytearray) -> Iterator[bytes]:
    while buffer and (end := frame_end(buffer)) is not None:
        yield bytes(buffer[:end])
        del buffer[:end]


@dataclass
class _Rule:
    """Strikes once, at the request number `after` (from 0) among those that contain `match`."""

    match: bytes
    after: int
    forward: bool
    """Whether the server gets the request (and only its reply is lost)."""
    part: float = 0.0
    """How much of the request the server gets, if not all of it."""
    ghost: bool = False
    """Whether the request is kept, to reach the server long after its client has gone."""


@dataclass(eq=False)
class _Link:
    """One client's connection and its twin to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    pending: deque[bool] = field(default_factory=deque)
    """For each request without a reply: whether its reply is to be lost."""
    ghost: bytes = b""
    """What the server is still to get, whether or not the client is there."""
    laid: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the server has answered the ghost, or ended."""

    def reset(self) -> None:
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class FaultProxy:
    """Listens on loopback and passes everything on to `upstream` until a fault is armed."""

    def __init__(self, upstream: str | tuple[str, int]) -> None:
        self.upstream = upstream
        self.connections = 0
        """How many connections were accepted."""
        self.struck = 0
        """How many connections a fault has cut."""
        self._links: set[_Link] = set()
        self._ghosts: list[_Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._port = HeldPort()
        self._run(self._open())
        self.clear()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        return "127.0.0.1", self._port.number

    @property
    def url(self) -> str:
        """The URL that leads through the proxy."""
        return f"redis://127.0.0.1:{self._port.number}/0"

    # Faults. Each is in force when the call returns.

    def clear(self) -> None:
        """Take all faults away; connections that were cut stay cut."""
        self._do(self._clear)

    def drop_reply(self, match: bytes = b"", *, after: int = 0) -> None:
        """Let the server answer one request, then lose the reply and cut: applied, unknown."""
        self._do(lambda: self._arm(_Rule(match, after, forward=True)))

    def cut_before(self, match: bytes = b"", *, after: int = 0) -> None:
        """Cut instead of passing one request on: never applied."""
        self._do(lambda: self._arm(_Rule(match, after, forward=False)))

    def cut_within(self, match: bytes = b"", *, after: int = 0, part: float = 0.5) -> None:
        """Cut in the middle of passing one request on: never applied."""
        self._do(lambda: self._arm(_Rule(match, after, forward=False, part=part)))

    def hold_request(self, match: bytes = b"", *, after: int = 0) -> None:
        """Keep one request back, as a stopped server's socket would, until `release_requests`.

        That its client closes the connection meanwhile changes nothing.
        """
        self._do(lambda: self._arm(_Rule(match, after, forward=False, ghost=True)))

    def release_requests(self) -> int:
        """Let the server have what `hold_request` kept back; return how many requests that were."""
        return self._run(self._release_ghosts())

    def hold_replies(self) -> None:
        """Pass requests on and keep all replies back, until `clear`."""
        self._do(self._hearing.clear)

    def limit_data(self, limit: int) -> None:
        """Cut after `limit` more bytes of replies, wherever that is in one."""
        self._do(lambda: setattr(self, "_limit", limit))

    def slicer(self, size: int) -> None:
        """Hand replies on in pieces of `size` bytes."""
        self._do(lambda: setattr(self, "_slice", size))

    def latency(self, seconds: float) -> None:
        """Hold each piece of reply back for so long."""
        self._do(lambda: setattr(self, "_latency", seconds))

    def half_open(self) -> None:
        """Pass nothing on any more, in either direction, and close nothing."""
        self._do(self._close_gate)

    def reset_peer(self) -> int:
        """Cut all present connections with RST; return how many there were."""
        return self._do(self._reset_all)

    def down(self, *, keep: bool = False) -> None:
        """Refuse new connections, and cut the present ones unless they are to `keep`."""
        self._run(self._close_listener())
        if not keep:
            self.reset_peer()

    def up(self) -> None:
        """Listen again, on the same port."""
        self._run(self._open())

    def close(self) -> None:
        """End the proxy with all its connections."""
        self.clear()
        self.down()
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._port.release()

    # Inside the loop's thread.

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _do(self, work: Callable[[], _T]) -> _T:
        async def call() -> _T:
            return work()

        return self._run(call())

    def _clear(self) -> None:
        self._rules: list[_Rule] = []
        self._limit: int | None = None
        self._slice: int | None = None
        self._latency = 0.0
        if not hasattr(self, "_gate"):
            self._gate = asyncio.Event()
            self._hearing = asyncio.Event()
        self._gate.set()
        self._hearing.set()

    def _close_gate(self) -> None:
        self._gate.clear()

    def _arm(self, rule: _Rule) -> None:
        self._rules.append(rule)

    def _reset_all(self) -> int:
        count = len(self._links)
        for link in tuple(self._links):
            link.reset()
        return count

    async def _open(self) -> None:
        self._listener = await asyncio.start_server(self._accept, *self.address)

    async def _close_listener(self) -> None:
        self._listener.close()

    async def _end_tasks(self) -> None:
        await asyncio.sleep(0)  # what asyncio is just accepting becomes a task that can be ended
        for _ in range(3):  # ending one may begin another
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if isinstance(self.upstream, str):
                far_reader, far_writer = await asyncio.open_unix_connection(self.upstream)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, far_writer)
        self._links.add(link)
        pumps = [
            asyncio.ensure_future(self._requests(link, reader)),
            asyncio.ensure_future(self._replies(link, far_reader)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._links.discard(link)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()
            far_writer.close()
            link.laid.set()

    async def _release_ghosts(self) -> int:
        ghosts, self._ghosts = self._ghosts, []
        for link in ghosts:
            link.server.write(link.ghost)
            await link.laid.wait()
        return len(ghosts)

    def _strikes(self, request: bytes) -> _Rule | None:
        for rule in self._rules:
            if rule.match in request:
                if rule.after == 0:
                    self._rules.remove(rule)
                    return rule
                rule.after -= 1
        return None

    async def _requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        buffer = bytearray()
        while data := await reader.read(1 << 16):
            buffer += data
            for frame in _frames(buffer):
                await self._gate.wait()
                rule = self._strikes(frame)
                if rule is not None and not rule.forward:
                    self.struck += 1
                    if rule.ghost:
                        link.ghost = frame
                        link.pending.append(True)  # its reply comes to nobody
                        self._ghosts.append(link)
                        await asyncio.Event().wait()
                    link.server.write(frame[: int(len(frame) * rule.part)])
                    # The server applies and answers what came before, then closes; that ends this.
                    link.server.write_eof()
                    await asyncio.Event().wait()
                link.pending.append(rule is not None)
                link.server.write(frame)
            await link.server.drain()

    async def _replies(self, link: _Link, reader: asyncio.StreamReader) -> None:
        buffer = bytearray()
        while data := await reader.read(1 << 16):
            buffer += data
            for frame in _frames(buffer):
                await self._gate.wait()
                await self._hearing.wait()
                if self._latency:
                    await asyncio.sleep(self._latency)
                pushed = frame.startswith(b">")
                if not pushed and link.pending and link.pending.popleft():
                    self._strike(link)
                    return
                if not await self._pass_on(link, frame):
                    self._strike(link)
                    return

    def _strike(self, link: _Link) -> None:
        self.struck += 1
        with suppress(RuntimeError):
            link.client.close()
        link.server.transport.abort()

    async def _pass_on(self, link: _Link, frame: bytes) -> bool:
        """Send `frame` to the client, in pieces and up to the limit; return False at the limit."""
        whole = True
        if self._limit is not None:
            whole = len(frame) < self._limit
            frame = frame[: self._limit]
            self._limit -= len(frame)
        size = self._slice or len(frame) or 1
        for start in range(0, len(frame), size):
            link.client.write(frame[start : start + size])
            await link.client.drain()
            if self._slice:
                await asyncio.sleep(0)  # each piece leaves in a turn, and so a segment, of its own
        if not whole:
            self._limit = None
        return whole


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """A factory of `FaultProxy` objects in front of a server's address (TCP pair or socket path).

    `fault_proxy(server)` takes a `fix_servers.Server`, an `EmbeddedServer`, or an address.
    """
    made: list[FaultProxy] = []

    def make(upstream: Any) -> FaultProxy:
        address = getattr(upstream, "address", None) or getattr(upstream, "socket", upstream)
        proxy = FaultProxy(address if isinstance(address, tuple) else str(address))
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy.close()
