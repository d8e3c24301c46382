"""One blocking connection: connect, greet, round trips. It never retries."""

from __future__ import annotations

import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Any

from llmspell_dist.fork import close_silently
from llmspell_dist.redis.connection import handshake, prepare_socket
from llmspell_dist.redis.resp import NOTHING, PushNotification, make_reader, pack
from llmspell_dist.redis.ring import Ring, ring_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmspell_dist.clock import ServerClock
    from llmspell_dist.redis.commands import ScriptSource
    from llmspell_dist.redis.connection import Endpoint, ServerInfo
    from llmspell_dist.redis.options import LaneOptions

__all__ = ["BlockingSocket"]

_TIME = pack("TIME")
_BUFFER_BYTES = 64 * 1024


class BlockingSocket:
    """A connection for one thread at a time, with operation ids of its own.

    Any exception out of a round trip leaves it disconnected, so that a reply can never reach the
    caller after.
    """

    __slots__ = (
        "_buffer",
        "_clock",
        "_clock_due",
        "_deadline",
        "_feed",
        "_gets",
        "_options",
        "_patience",
        "_recv_into",
        "_scripts",
        "_sendall",
        "_sock",
        "info",
        "left",
        "ring",
        "used_at",
    )

    def __init__(
        self, options: LaneOptions, scripts: Sequence[ScriptSource], clock: ServerClock
    ) -> None:
        self._options = options
        self._scripts = scripts
        self._clock = clock
        self._buffer = bytearray(_BUFFER_BYTES)
        self._sock: socket.socket | None = None
        self._clock_due = 0.0
        self.info: ServerInfo | None = None
        self.ring = Ring(ring_key)
        self.used_at = 0.0
        self.left = False
        """Whether the last request left as a whole. One that did not can never be carried out."""
        self._patience = 0.0
        self._deadline = 0.0
        self._use_reader()

    def _use_reader(self) -> None:
        reader = make_reader()
        self._feed: Callable[..., None] = reader.feed
        self._gets: Callable[[], Any] = reader.gets

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known without asking."""
        return self._sock is not None

    def connect(self, endpoint: Endpoint) -> None:
        """Connect and greet; raises OSError, ProtocolError or a StoreUnavailableError."""
        timeout_s = self._options.connect_timeout
        if endpoint.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout_s)
        else:
            sock = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
        try:
            if endpoint.path is not None:
                sock.connect(endpoint.path)
            prepare_socket(sock)
            if endpoint.tls is not None:
                name = endpoint.host if endpoint.path is None else None
                sock = endpoint.tls.wrap_socket(sock, server_hostname=name)
            # Blocking without Python's own timeout, which would poll before each call; the kernel
            # keeps the time.
            sock.settimeout(None)
            self._use_socket(sock)
            self.patience(timeout_s)
            steps = handshake(endpoint, self._scripts, previous=self.info, clock=self._clock)
            requests = next(steps)
            while True:
                self._deadline = monotonic() + timeout_s
                self._send_greeting(b"".join(requests))
                try:
                    requests = steps.send([self._read() for _ in requests])
                except StopIteration as done:
                    self.info = done.value
                    break
            self.patience(self._options.call_timeout)
        except BaseException:
            self._sock = None
            sock.close()
            raise
        self.used_at = monotonic()
        self._clock_due = self.used_at + self._options.clock_interval

    def _send_greeting(self, packed: bytes) -> None:
        try:
            self._sendall(packed)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses the connection says why, and closes: that is there to be read.
            reply = self._read()
            raise ConnectionRefusedError(str(reply)) from None

    def _use_socket(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sendall = sock.sendall
        self._recv_into = sock.recv_into
        self._use_reader()

    def patience(self, seconds: float) -> None:
        """Set how long the server may take for a whole reply."""
        self._patience = seconds
        self._limit_receive(seconds)

    def _limit_receive(self, seconds: float) -> None:
        if self._sock is not None:
            whole = int(seconds)
            value = struct.pack("@ll", whole, int((seconds - whole) * 1e6))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def round_trip(self, packed: bytes) -> Any:
        """Send a request and return its reply; an error reply is returned, too."""
        now = self.used_at = monotonic()
        self._deadline = now + self._patience
        self.left = False
        try:
            if now >= self._clock_due:
                self._clock_due = now + self._options.clock_interval
                self._sendall(_TIME + packed)
                self.left = True
                time = self._read()
                if type(time) is list:
                    self._clock.observe(now, monotonic(), int(time[0]) + int(time[1]) / 1e6)
            else:
                self._sendall(packed)
                self.left = True
            return self._read()
        except BaseException:
            self.disconnect()
            raise

    def round_trips(self, packed: bytes, count: int) -> list[Any]:
        """Send several requests in one piece and return their replies."""
        self.used_at = monotonic()
        self._deadline = self.used_at + self._patience
        self.left = True  # the first may have left, even if the last did not
        try:
            self._sendall(packed)
            return [self._read() for _ in range(count)]
        except BaseException:
            self.disconnect()
            raise

    def _read(self) -> Any:
        gets = self._gets
        reply = gets()
        received = 0
        while True:
            if reply is NOTHING:
                if received == 1:
                    self._limit_receive(max(0.001, self._deadline - monotonic()))
                elif received and monotonic() >= self._deadline:
                    raise TimeoutError
                count = self._recv_into(self._buffer)
                if not count:
                    raise ConnectionResetError("the server closed the connection")
                self._feed(self._buffer, 0, count)
                received += 1
            elif type(reply) is not PushNotification:
                if received > 1:
                    self._limit_receive(self._patience)
                return reply
            reply = gets()

    def is_stale(self) -> bool:
        """Whether an idle connection was closed by the server, or holds bytes nobody asked for."""
        if self._sock is None:
            return True
        if hasattr(self._sock, "pending"):
            return False  # TLS cannot peek; its next round trip finds out
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def disconnect(self) -> None:
        """Close; the next use has to connect again."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def interrupt(self) -> None:
        """Make a round trip in another thread fail now."""
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def forget(self) -> None:
        """Close the inherited descriptor in a forked child, without a word to the server."""
        sock, self._sock = self._sock, None
        if sock is not None:
            close_silently(sock)
