"""One connected socket: requests out, replies to their waiters in order. It never reconnects."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, cast

from llmspell_dist.redis.replies import system_said
from llmspell_dist.redis.resp import (
    NOTHING,
    ErrorReply,
    ProtocolError,
    PushNotification,
    make_reader,
)

if TYPE_CHECKING:
    import socket

    from llmspell_dist.redis.connection import Handshake, ServerInfo

__all__ = ["Entry", "Waiter", "Wire", "WireOwner"]

WRITE_BUFFER_BYTES = 1 << 20
_MARK_EVERY_S = 0.02
_CLOSE_WITHIN_S = 1.0


class Waiter(Protocol):
    """Who waits for a reply and is no plain future."""

    def deliver(self, entry: Entry, reply: Any) -> None:
        """Take the reply, which may be an `ErrorReply`."""

    def lost(self, entry: Entry, said: str) -> list[Entry]:
        """Learn that the connection was lost; return what to send again."""


Entry = tuple[Any, bytes | None, float]
"""A waiter (a future or a `Waiter`), its request (None: packed when it is sent), and the moment of
the monotonic clock at which it was submitted."""


class WireOwner(Protocol):
    """What a wire tells the lane that it serves."""

    def refused(self, entry: Entry, reply: ErrorReply) -> None:
        """Take a plain future's request that was answered by an error."""

    def progressed(self) -> None:
        """Learn that replies came in, or that the transport takes bytes again."""

    def wire_lost(self, wire: Wire, said: str) -> None:
        """Learn, once, that the connection is gone."""


class Wire(asyncio.Protocol):
    """The protocol of one connection.

    A reply belongs to the oldest pending entry, whether or not somebody still waits for it: a
    cancelled caller leaves its entry in the queue, so nobody ever gets another's reply. Push
    messages belong to no entry. A reply that nobody asked for ends the connection.
    """

    __slots__ = (
        "_closed",
        "_feed",
        "_gets",
        "_gone",
        "_lost",
        "_marks",
        "_owner",
        "_said",
        "_sent",
        "info",
        "pending",
        "pushes",
        "since",
        "sock",
        "transport",
        "writable",
    )

    def __init__(self, owner: WireOwner) -> None:
        reader = make_reader()
        self._feed = reader.feed
        self._gets = reader.gets
        self._owner = owner
        self._lost = False
        self._gone = False
        self._said = "the client was closed"
        self._closed: asyncio.Future[None] | None = None
        self._sent = 0
        self._marks: deque[tuple[int, float]] = deque()
        self.pending: deque[Entry] = deque()
        self.pushes = 0
        self.since = monotonic()
        self.info: ServerInfo | None = None
        self.sock: socket.socket | None = None
        """The bare socket, if it is not TLS."""
        self.transport: asyncio.Transport | None = None
        self.writable = False

    # --- what asyncio calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to take requests."""
        # Not asserted: uvloop's transports are not derived from asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.writable = True

    def data_received(self, data: bytes) -> None:
        """Hand out the replies that are complete."""
        gets = self._gets
        pending = self.pending
        owner = self._owner
        popleft = pending.popleft
        future_type = asyncio.Future
        try:
            self._feed(data)
            while (reply := gets()) is not NOTHING:
                kind = type(reply)
                if kind is PushNotification:
                    self.pushes += 1
                    continue
                try:
                    entry = popleft()
                except IndexError:
                    said = "the server sent a reply that nobody asked for"
                    self.kill(reply.text if kind is ErrorReply else said)
                    return
                waiter = entry[0]
                if type(waiter) is not future_type:
                    waiter.deliver(entry, reply)
                elif kind is not ErrorReply:
                    try:  # noqa: SIM105 - this is the hot path
                        waiter.set_result(reply)
                    except asyncio.InvalidStateError:
                        pass  # its caller was cancelled
                elif not waiter.done():
                    owner.refused(entry, reply)
        except ProtocolError as error:
            self.kill(f"not the Redis protocol: {error}")
            return
        owner.progressed()

    def pause_writing(self) -> None:
        """Stop taking requests: the transport's buffer is full."""
        self.writable = False

    def resume_writing(self) -> None:
        """Take requests again."""
        self.writable = not self._lost
        self._owner.progressed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the lane."""
        self._gone = True
        if exc is not None and self.info is None:
            self._hear_last_words()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
        self._lose("the server closed the connection" if exc is None else system_said(exc))

    def _hear_last_words(self) -> None:
        """Read why the server refused the connection: it says so, closes, and takes no greeting."""
        if self.sock is not None:
            try:
                self.data_received(self.sock.recv(4096))
            except OSError:
                return

    # --- what the lane calls --------------------------------------------------------------------

    def write(self, data: bytes, count: int, now: float) -> None:
        """Send `count` requests, whose entries are in `pending` already."""
        marks = self._marks
        if not marks or now - marks[-1][1] >= _MARK_EVERY_S:
            marks.append((self._sent, now))
        self._sent += count
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def oldest_sent_at(self) -> float | None:
        """Return when the request was sent whose reply comes next, within 20 ms; None if none is.

        The moment given is never later than the true one.
        """
        pending = len(self.pending)
        marks = self._marks
        if not pending:
            if len(marks) > 1:
                last = marks[-1]
                marks.clear()
                marks.append(last)
            return None
        answered = self._sent - pending
        while len(marks) > 1 and marks[1][0] <= answered:
            marks.popleft()
        return marks[0][1]

    async def greet(self, steps: Handshake) -> ServerInfo:
        """Run a handshake; its error replies reach the handshake as values."""
        requests = next(steps)
        while True:
            if self._lost:
                raise ConnectionResetError(self._said)
            batch = _Batch(len(requests))
            now = monotonic()
            self.pending.extend((batch, None, now) for _ in requests)
            self.write(b"".join(requests), len(requests), now)
            replies = await batch.future
            try:
                requests = steps.send(replies)
            except StopIteration as done:
                if self._lost:
                    raise ConnectionResetError(self._said) from None
                info: ServerInfo = done.value
                return info

    def kill(self, said: str) -> None:
        """End the connection at once; what was pending goes back to the lane."""
        if self.transport is not None:
            self.transport.abort()
        self._lose(said)

    async def close(self) -> None:
        """End the connection after what was written has left; tells nobody."""
        self._lost = True
        self.writable = False
        transport = self.transport
        if transport is not None and not self._gone:
            self._closed = asyncio.get_running_loop().create_future()
            transport.close()
            try:
                async with asyncio.timeout(_CLOSE_WITHIN_S):
                    await asyncio.shield(self._closed)
            except TimeoutError:
                transport.abort()

    def _lose(self, said: str) -> None:
        if self._lost:
            return
        self._lost = True
        self._said = said
        self.writable = False
        if self.info is None:  # still greeting: the dialler waits for a batch
            for waiter, _, _ in self.pending:
                waiter.fail(ConnectionError(said))
            self.pending.clear()
        self._owner.wire_lost(self, said)


class _Batch:
    """Waits for the replies of one step of a handshake."""

    __slots__ = ("_count", "_replies", "future")

    def __init__(self, count: int) -> None:
        self._count = count
        self._replies: list[Any] = []
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    def deliver(self, entry: Entry, reply: Any) -> None:  # noqa: ARG002 - a Waiter
        self._replies.append(reply)
        if len(self._replies) == self._count and not self.future.done():
            self.future.set_result(self._replies)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
