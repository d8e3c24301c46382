"""The hub: the one connection over which an event loop hears pub/sub messages.

Pub/sub is only the bell: what is published while the connection is down is lost. So the hub tells
each channel's owner when it stopped hearing and when it hears again; the owner then looks at the
data itself.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from dataclasses import replace
from typing import TYPE_CHECKING

from llmspell_dist.errors import (
    ClosedError,
    InvalidArgumentError,
    StoreUnavailableError,
)
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.redis.hub_requests import Channel, HubRequests, Place
from llmspell_dist.redis.hub_wire import HubWire
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmspell_dist.redis.connection import EndpointResolver

__all__ = ["Hub"]

_PING_AFTER_S = 5.0
"""A hub only listens, so nothing but its ping finds a dead connection: it waits no longer."""


class Hub(HubRequests):
    """The pub/sub connection of one event loop, kept alive, shared by all who listen.

    The constructor does no I/O; the first `subscribe` connects. An idle hub sends nothing but a
    PING after every `options.health_check_interval` seconds of silence, at most 5 (0: never). A
    connection that is lost, or that leaves a request without an answer for `options.call_timeout`
    seconds, is replaced, with growing pauses, for as long as there is a channel; then every channel
    is subscribed again.

    All callbacks run in the event loop and must not block. What they raise is logged and ends
    nothing.
    """

    name = "hub"
    scripts = ()
    clock = None

    def __init__(self, resolver: EndpointResolver, *, options: LaneOptions | None = None) -> None:
        options = options or LaneOptions()
        interval_s = min(options.health_check_interval, _PING_AFTER_S)
        super().__init__(resolver, replace(options, health_check_interval=interval_s))
        on_fork(self)

    def _begin(self) -> None:
        super()._begin()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._supervisor = Supervisor(self, HubWire)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now; that one died in silence is noticed later."""
        return self._wire is not None

    async def subscribe(
        self,
        channel: bytes,
        listener: Callable[[bytes], None],
        *,
        resumed: Callable[[], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        """Have `listener(message)` called for every message on `channel`, in order of arrival.

        Returns when the server has confirmed: what is published from then on is heard, unless the
        connection is lost. Then `lost()` is called at once, and `resumed()` as soon as this channel
        is subscribed again; in between messages may have been missed. `listener` may be called
        before the caller of `subscribe` runs on.

        A channel has one listener: `InvalidArgumentError` for a second. `StoreUnavailableError`, or
        a child of it, if there is no subscription within `options.retry_budget` seconds, and at
        once if the server refuses for good; nothing is subscribed then, nor after a cancellation.
        `ClosedError` after `close`.
        """
        await self._add("channel", (False, channel), listener, resumed, lost)

    async def psubscribe(
        self,
        pattern: bytes,
        listener: Callable[[bytes, bytes], None],
        *,
        resumed: Callable[[], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        """Have `listener(channel, message)` called for every message on a channel that matches.

        `pattern` is one of Redis, as for PSUBSCRIBE. All else is as with `subscribe`; a message
        comes once for each pattern, and once more for the channel if that is subscribed too.
        """
        await self._add("pattern", (True, pattern), listener, resumed, lost)

    async def _add(
        self,
        argument: str,
        place: Place,
        listener: Callable[..., None],
        resumed: Callable[[], None] | None,
        lost: Callable[[], None] | None,
    ) -> None:
        self.check_loop()
        if self.closing:
            raise ClosedError("the client is closed")
        if not isinstance(place[1], bytes):
            raise InvalidArgumentError(argument, place[1], "must be bytes")
        if place in self._channels:
            raise InvalidArgumentError(argument, place[1], "must not have a listener yet")
        if self._loop is None:
            self._loop = get_running_loop()
            self._supervisor.start(self._loop)
        wanted = Channel(place, listener, resumed, lost)
        self._want(wanted)
        try:
            await wanted.future
        except asyncio.CancelledError:
            self._leave(wanted)
            raise

    def hears(self, channel: bytes) -> bool:
        """Whether the server has confirmed a channel on the present connection."""
        return self._wire is not None and channel in self._wire.listeners

    async def confirmed(self, channel: bytes) -> None:
        """Return when the server has confirmed a channel on the present connection.

        At once while it is heard. The errors are those of `subscribe`, after the same time; the hub
        goes on trying then. `InvalidArgumentError` for a channel that nobody has subscribed.
        """
        self.check_loop()
        budget_s = self.options.retry_budget
        wanted = None
        limit = asyncio.timeout(budget_s)
        try:
            async with limit:
                while not self.hears(channel):
                    wanted = self._channels.get((False, channel))
                    if self.closing:
                        raise ClosedError("the client is closed")
                    if wanted is None:
                        raise InvalidArgumentError("channel", channel, "must have a listener")
                    await asyncio.shield(wanted.again())
        except TimeoutError:
            if not limit.expired():
                raise
            refusal = None if wanted is None else wanted.refusal
            late = f"not confirmed within {budget_s:g} s"
            raise refusal or StoreUnavailableError(self.server, late) from None

    async def unsubscribe(self, channel: bytes) -> None:
        """Stop hearing a channel; its listener is not called again from this moment on.

        Returns when the server has confirmed, or when the connection is lost and the subscription
        with it. A `subscribe` that still waits for the channel returns. Does nothing if there is no
        such channel.
        """
        await self._remove((False, channel))

    async def punsubscribe(self, pattern: bytes) -> None:
        """Stop hearing a pattern; as `unsubscribe`."""
        await self._remove((True, pattern))

    async def _remove(self, place: Place) -> None:
        self.check_loop()
        found = self._channels.get(place)
        if found is None:
            return
        leave = self._leave(found)
        if not found.future.done():
            found.future.set_result(None)
        if leave is not None:
            await leave.future

    async def close(self) -> None:
        """Drop all channels and disconnect, without a call of `lost`.

        A `subscribe` that still waits fails. Closing twice is allowed.
        """
        self.check_loop()
        self.closing = True
        if self._loop is None:
            return
        wire = self._detach()
        self.fail_all(StoreUnavailableError, "the client was closed before the server answered")
        self._channels.clear()
        await self._supervisor.stop()
        if wire is not None:
            await wire.close()

    def forget(self) -> None:
        """Drop everything that was inherited over a fork, without touching the parent's socket."""
        keep_forever(self._wire, self._supervisor, self._loop, self._channels)
        keep_forever(self._turn, self._refused, self._again)
        self._supervisor.forget()
        self._begin()

    def check_loop(self) -> None:
        """Raise `WrongEventLoopError` in another event loop than that of the first use."""
        self._supervisor.check_loop()
