"""Keeps a lane or the hub connected: dials, greets, watches for overdue replies, backs off.

What it serves is `Supervised`: it tells by its `backlog` whether anything still needs a connection.
A lane's backlog ends with its callers' patience, the hub's with its last channel.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import (
    SpellError,
    StoreAuthenticationError,
    StorePermissionError,
    StoreProtocolError,
    StoreTimeoutError,
    StoreUnavailableError,
    WrongEventLoopError,
)
from llmspell_dist.fork import close_silently
from llmspell_dist.redis.connection import handshake, prepare_socket
from llmspell_dist.redis.replies import system_said
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.wire import Wire, WireOwner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Sized

    from llmspell_dist.clock import ServerClock
    from llmspell_dist.redis.commands import ScriptSource
    from llmspell_dist.redis.connection import Endpoint, EndpointResolver, ServerInfo
    from llmspell_dist.redis.options import LaneOptions

__all__ = ["Supervised", "Supervisor"]

logger = logging.getLogger("llmspell_dist.redis")

_FATAL = (StoreAuthenticationError, StorePermissionError, StoreProtocolError)
"""Refusals that no retry mends: they fail all waiting calls at once."""
_PING = pack("PING")
_SETTLED_S = 1.0
"""A connection that lived so long ends the backing off."""
_SAID_OFTEN = 10
_SAID_EVERY = 100
"""After the first ten failures in a row only every hundredth is a warning: the hub never gives up,
and a night's outage must not fill the log."""


class Supervised(WireOwner, Protocol):
    """A lane or the hub, as far as its supervisor needs it."""

    options: LaneOptions
    closing: bool
    info: ServerInfo | None

    @property
    def name(self) -> str:
        """What the log calls it."""

    @property
    def resolver(self) -> EndpointResolver:
        """Says where the server is."""

    @property
    def server(self) -> str:
        """What errors call the server."""

    @property
    def scripts(self) -> Sequence[ScriptSource]:
        """What each new connection loads."""

    @property
    def clock(self) -> ServerClock | None:
        """What each handshake sets, if anything."""

    @property
    def backlog(self) -> Sized:
        """What needs a connection; while there is any, connecting goes on."""

    def attach(self, wire: Any) -> None:
        """Use a connection that was greeted."""

    def ask(self, packed: bytes) -> None:
        """Send a request whose answer is only a sign of life."""

    def expire(self, now: float, cls: type[StoreUnavailableError], said: str) -> None:
        """Fail what waits for longer than its budget."""

    def fail_all(self, cls: type[StoreUnavailableError], said: str) -> None:
        """Fail everything that waits."""


class Supervisor:
    """The one task and the one timer of a lane or of the hub."""

    def __init__(self, lane: Supervised, make_wire: Callable[[Any], Wire] = Wire) -> None:
        options = lane.options
        self._lane = lane
        self._make_wire = make_wire
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tick_s = max(0.01, min(options.call_timeout / 5, options.retry_budget / 10, 1.0))
        self._next_tick = 0.0
        self._backoff = Backoff.within(options.retry_budget)
        self._wire: Wire | None = None
        self._sock: socket.socket | None = None
        self._last_traffic = 0.0
        self._last_push = 0.0
        self._pushes = 0
        self._said = "not connected yet"
        self._error: type[StoreUnavailableError] = StoreUnavailableError

    def check_loop(self) -> None:
        """Raise `WrongEventLoopError` in another event loop than that of `start`."""
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise WrongEventLoopError(
                "a client belongs to the event loop that used it first; "
                "make one client per event loop (and per asyncio.run)"
            )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch, in the lane's event loop."""
        self._loop = loop
        self._timer = loop.call_later(self._tick_s, self._tick)
        self._next_tick = monotonic() + self._tick_s

    async def stop(self) -> None:
        """End the task and the timer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def wake(self) -> None:
        """See to it that somebody is connecting."""
        if self._loop is not None and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._connect(), name=f"{self._lane.name} lane")

    def lost(self, said: str) -> None:
        """Note that the connection is gone, and connect again."""
        self._said = said
        wire = self._wire
        if wire is not None and monotonic() - wire.since > _SETTLED_S:
            self._backoff.reset()
        self._wire = None
        self._sock = None
        lane = self._lane
        lane.expire(monotonic(), self._error, said)
        if lane.backlog or not lane.closing:
            self.wake()

    def leave(self, wire: Wire, because: StoreUnavailableError) -> None:
        """Connect anew, since the server refuses what is asked.

        Who runs out of time before there is a connection is told that.
        """
        self._error = type(because)
        wire.kill(because.said)

    # --- watching -------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        lane, wire, now = self._lane, self._wire, monotonic()
        punctual = now < self._next_tick + self._tick_s
        self._next_tick = now + self._tick_s
        options = lane.options
        if wire is None:
            lane.expire(now, self._error, self._said)
            return
        if wire.pushes != self._pushes:  # as good a sign of life as a reply
            self._pushes = wire.pushes
            self._last_traffic = self._last_push = now
        oldest = wire.oldest_sent_at()
        patience = options.call_timeout
        if lane.name == "durable":
            patience += options.ack_timeout
        if oldest is not None:
            self._last_traffic = now
            # A loop that was blocked has not read yet what the server may have answered long ago.
            if now - max(oldest, self._last_push) > patience and punctual:
                self._error = StoreTimeoutError
                wire.kill(f"no reply within {patience:g} s")
        elif 0 < options.health_check_interval < now - self._last_traffic and not lane.closing:
            lane.ask(_PING)
        if lane.backlog:
            lane.expire(now, StoreTimeoutError, f"not sent within {options.retry_budget:g} s")

    # --- connecting -----------------------------------------------------------------------------

    async def _connect(self) -> None:
        lane = self._lane
        started = monotonic()
        while lane.backlog or not lane.closing:
            if self._backoff.failures:
                await asyncio.sleep(self._backoff.pause_s())
            try:
                async with asyncio.timeout(lane.options.connect_timeout):
                    wire = await self._dial(await lane.resolver.resolve())
            except _FATAL as error:
                self._said = error.said
                self._backoff.failures += 1
                logger.log(self._level(), "%s lane: %s", lane.name, error)
                lane.fail_all(type(error), error.said)
                if not lane.backlog:
                    return
            except (OSError, TimeoutError, SpellError) as error:
                self._note_failure(error)
                if isinstance(error, ssl.SSLCertVerificationError):
                    lane.fail_all(StoreUnavailableError, self._said)
                    if not lane.backlog:
                        return
                if not lane.backlog and monotonic() - started > lane.options.retry_budget:
                    return  # nobody waits: the next request wakes us
            else:
                if self._backoff.failures:
                    logger.warning("%s lane: connected to %s again", lane.name, lane.server)
                self._wire = wire
                self._error = StoreUnavailableError
                self._last_traffic = monotonic()
                self._pushes = wire.pushes
                self._last_push = 0.0
                lane.attach(wire)
                return

    def _note_failure(self, error: BaseException) -> None:
        lane = self._lane
        if isinstance(error, StoreUnavailableError):
            self._error, self._said = type(error), error.said
        elif isinstance(error, TimeoutError):
            self._error = StoreTimeoutError
            self._said = f"no connection within {lane.options.connect_timeout:g} s"
        else:
            self._error, self._said = StoreUnavailableError, system_said(error)
        self._backoff.failures += 1
        logger.log(
            self._level(),
            "%s lane: no connection to %s (attempt %d): %s",
            lane.name,
            lane.resolver.label,
            self._backoff.failures,
            self._said,
        )
        lane.expire(monotonic(), self._error, self._said)

    def _level(self) -> int:
        failures = self._backoff.failures
        often = failures <= _SAID_OFTEN or failures % _SAID_EVERY == 0
        return logging.WARNING if often else logging.DEBUG

    async def _dial(self, endpoint: Endpoint) -> Wire:
        """Connect and greet; the socket is ours, so that a forked child can drop it."""
        lane = self._lane
        loop = asyncio.get_running_loop()
        sock = self._sock = await _open_socket(loop, endpoint)
        wire = self._make_wire(lane)
        if endpoint.tls is None:
            wire.sock = sock
        try:
            options: dict[str, Any] = {"sock": sock, "ssl": endpoint.tls}
            if endpoint.tls is not None:
                options["server_hostname"] = "" if endpoint.path else endpoint.host
            if endpoint.path is not None:
                await loop.create_unix_connection(lambda: wire, **options)
            else:
                await loop.create_connection(lambda: wire, **options)
            steps = handshake(endpoint, lane.scripts, previous=lane.info, clock=lane.clock)
            wire.info = await wire.greet(steps)
        except BaseException:
            wire.kill("the handshake failed")
            sock.close()
            raise
        return wire

    def forget(self) -> None:
        """Close an inherited socket in a forked child, without a word to the server."""
        if self._sock is not None:
            close_silently(self._sock)


async def _open_socket(loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> socket.socket:
    if endpoint.path is not None:
        targets: list[tuple[Any, ...]] = [
            (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", endpoint.path)
        ]
    else:
        targets = list(
            await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        )
    failure: OSError = OSError(f"{endpoint.address} has no address")
    for family, kind, proto, _, address in targets:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            prepare_socket(sock)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
