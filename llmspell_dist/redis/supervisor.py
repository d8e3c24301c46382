"""Keeps a lane connected: dials, greets, watches for overdue replies, backs off, gives up."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import (
    SpellError,
    StoreAuthenticationError,
    StorePermissionError,
    StoreProtocolError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.redis.connection import handshake, prepare_socket
from llmspell_dist.redis.fork import close_silently
from llmspell_dist.redis.replies import system_said
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.retry import Backoff
from llmspell_dist.redis.wire import Wire

if TYPE_CHECKING:
    from llmspell_dist.redis.connection import Endpoint
    from llmspell_dist.redis.lane import Lane

__all__ = ["Supervisor"]

logger = logging.getLogger("llmspell_dist.redis")

_FATAL = (StoreAuthenticationError, StorePermissionError, StoreProtocolError)
"""Refusals that no retry mends: they fail all waiting calls at once."""
_PING = pack("PING")
_SETTLED_S = 1.0
"""A connection that lived so long ends the backing off."""


class Supervisor:
    """The one task and the one timer of a lane."""

    def __init__(self, lane: Lane) -> None:
        options = lane.options
        self._lane = lane
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tick_s = max(0.01, min(options.call_timeout / 5, options.retry_budget / 10, 1.0))
        self._next_tick = 0.0
        self._backoff = Backoff.within(options.retry_budget)
        self._wire: Wire | None = None
        self._sock: socket.socket | None = None
        self._last_traffic = 0.0
        self._said = "not connected yet"
        self._error: type[StoreUnavailableError] = StoreUnavailableError

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
        oldest = wire.oldest_sent_at()
        patience = options.call_timeout
        if lane.name == "durable":
            patience += options.ack_timeout
        if oldest is not None:
            self._last_traffic = now
            # A loop that was blocked has not read yet what the server may have answered long ago.
            if now - oldest > patience and punctual:
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
                logger.warning("%s lane: %s", lane.name, error)
                self._said = error.said
                self._backoff.failures += 1
                lane.fail_all(type(error), error.said)
                return
            except (OSError, TimeoutError, SpellError) as error:
                self._note_failure(error)
                if isinstance(error, ssl.SSLCertVerificationError):
                    lane.fail_all(StoreUnavailableError, self._said)
                    return
                if not lane.backlog and monotonic() - started > lane.options.retry_budget:
                    return  # nobody waits: the next request wakes us
            else:
                if self._backoff.failures:
                    logger.warning("%s lane: connected to %s again", lane.name, lane.server)
                self._wire = wire
                self._error = StoreUnavailableError
                self._last_traffic = monotonic()
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
        logger.warning(
            "%s lane: no connection to %s (attempt %d): %s",
            lane.name,
            lane.resolver.label,
            self._backoff.failures,
            self._said,
        )
        lane.expire(monotonic(), self._error, self._said)

    async def _dial(self, endpoint: Endpoint) -> Wire:
        """Connect and greet; the socket is ours, so that a forked child can drop it."""
        lane = self._lane
        loop = asyncio.get_running_loop()
        sock = self._sock = await _open_socket(loop, endpoint)
        wire = Wire(lane)
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
