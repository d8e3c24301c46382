"""Live subscriptions: heard over pub/sub, at most once, in a buffer that cannot grow."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.events.errors import SubscriberTooSlowError, UnreadableEventError
from llmspell_dist.events.model import Event
from llmspell_dist.events.steps import OVERFLOWS, SHARD
from llmspell_dist.events.subscription import Subscription

if TYPE_CHECKING:
    from llmspell_dist.events.steps import EventSteps
    from llmspell_dist.patterns import Pattern
    from llmspell_dist.redis.hub import Hub

__all__ = ["LiveStats", "LiveSubscription", "Pressure", "Router"]

logger = logging.getLogger("llmspell_dist.events")

DEFAULT_BUFFER: Final = 10_000
MAX_BUFFER: Final = 10_000_000
_GLOB: Final = frozenset(b"*?[]\\^")

Pressure = Callable[["LiveSubscription", str], None]
"""Is called with the subscription and ``started`` or ``relieved``."""


@dataclass(slots=True)
class LiveStats:
    """Counters of a live subscription since it began; every event that came is in one of them."""

    received: int = 0
    """Events that came and that the pattern means."""
    delivered: int = 0
    dropped: int = 0
    """Left out because the buffer was full."""
    expired: int = 0
    """Not delivered, since their time to live was over."""
    unreadable: int = 0
    """Bytes that are no event, or one of a later release."""
    waiting: int = 0
    """In the buffer now."""
    gaps: int = 0
    """Lost connections: what was published meanwhile did not come."""
    started: int = 0
    """How often the buffer rose over its high watermark."""
    relieved: int = 0
    """How often it fell below the low one after that."""


class LiveSubscription(Subscription[Event]):
    """Events as they are published: at most once, from now on, while there is a connection.

    An asynchronous iterator, for one or several tasks; ``async with`` begins and ends it. What
    comes faster than it is taken waits in a buffer; over that the strategy decides. Nothing that
    was left out goes uncounted: see `stats`.
    """

    def __init__(
        self,
        router: Router,
        pattern: Pattern,
        *,
        buffer: int = DEFAULT_BUFFER,
        overflow: str = "drop_oldest",
        high: int | None = None,
        low: int | None = None,
        on_pressure: Pressure | None = None,
    ) -> None:
        if type(overflow) is not str or overflow not in OVERFLOWS:
            rule = f"must be one of {', '.join(OVERFLOWS)}"
            raise InvalidArgumentError("overflow", overflow, rule)
        if overflow == "block":
            rule = (
                "must be drop_oldest, drop_newest or reject for a live subscription: "
                "it cannot stop publishers of other processes; use durable=… to block them"
            )
            raise InvalidArgumentError("overflow", overflow, rule)
        if type(buffer) is not int or not 1 <= buffer <= MAX_BUFFER:
            raise InvalidArgumentError("buffer", buffer, f"must be an int from 1 to {MAX_BUFFER:,}")
        high = buffer * 8 // 10 if high is None else high
        low = buffer * 2 // 10 if low is None else low
        if type(high) is not int or not 0 <= high <= buffer:
            raise InvalidArgumentError("high", high, "must be an int from 0 to the buffer's size")
        if type(low) is not int or not 0 <= low <= high:
            raise InvalidArgumentError("low", low, "must be an int from 0 to the high watermark")
        super().__init__()
        self.pattern = pattern.text
        self.router = router
        self.meant = pattern
        self._buffer = buffer
        self._overflow = overflow
        self._high, self._low = high, low
        self._on_pressure = on_pressure
        self._messages: deque[bytes] = deque()
        self._stats = LiveStats()
        self._pressed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pattern!r}>"

    def stats(self) -> LiveStats:
        """Return the counters as they are now."""
        return replace(self._stats, waiting=len(self._messages))

    # --- what comes in

    def take(self, message: bytes) -> None:
        """Put a message into the buffer, if there is room or the strategy makes some."""
        if self._end is not None:
            return
        stats, messages = self._stats, self._messages
        stats.received += 1
        if len(messages) >= self._buffer:
            stats.dropped += 1
            if self._overflow == "drop_newest":
                return
            if self._overflow == "reject":
                self._finish(SubscriberTooSlowError(self.pattern, self._buffer))
                return
            messages.popleft()
        messages.append(message)
        if len(messages) > self._high and not self._pressed:
            self._press(True)
        self._wake()

    def gap(self) -> None:
        """Take note that the connection was lost."""
        self._stats.gaps += 1

    def _press(self, pressed: bool) -> None:
        self._pressed = pressed
        if pressed:
            self._stats.started += 1
        else:
            self._stats.relieved += 1
        if self._on_pressure is not None:
            try:
                self._on_pressure(self, "started" if pressed else "relieved")
            except Exception:
                logger.exception("on_pressure of a live subscription failed")

    # --- what goes out

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await self._next()

    def _take(self) -> Event | None:
        return self.take_one()

    def take_one(self) -> Event | None:
        """Return the next event that is there, is readable and has not expired; None: none is."""
        messages, stats = self._messages, self._stats
        while messages:
            message = messages.popleft()
            if self._pressed and len(messages) < max(self._low, 1):
                self._press(False)
            try:
                event = self.router.steps.read_event(message)
            except UnreadableEventError as error:
                stats.unreadable += 1
                logger.warning("a live subscription to %r left out: %s", self.pattern, error)
                continue
            if event.ttl is not None and event.is_expired(datetime.now(UTC)):
                stats.expired += 1
                continue
            stats.delivered += 1
            return event
        return None

    # --- beginning and end

    async def __aenter__(self) -> Self:
        self._begin()
        await self.router.add(self)
        self._begun = True
        return self

    async def close(self) -> None:
        """End it: what is in the buffer can still be taken, then the iteration stops."""
        self._finish(None)
        await self.router.remove(self)

    def abandon(self, error: BaseException | None = None) -> None:
        """End it without telling the server: the client closes."""
        self._finish(error)


class _Route:
    """One channel or pattern that the hub hears for all subscriptions that want it."""

    def __init__(self, key: bytes, is_pattern: bool, skip: int) -> None:
        self.key = key
        self.is_pattern = is_pattern
        self.subscriptions: list[LiveSubscription] = []
        self._skip = skip
        self.lock = asyncio.Lock()
        self.heard = False

    def hear(self, message: bytes) -> None:
        for subscription in tuple(self.subscriptions):
            subscription.take(message)

    def hear_of(self, channel: bytes, message: bytes) -> None:
        event_type = channel[self._skip :].decode()
        for subscription in tuple(self.subscriptions):
            if subscription.meant.matches(event_type):
                subscription.take(message)

    def lost(self) -> None:
        for subscription in tuple(self.subscriptions):
            subscription.gap()


class Router:
    """Hears each channel once, for all live subscriptions of a client that want it."""

    def __init__(self, steps: EventSteps, hub: Hub) -> None:
        self.steps = steps
        self._hub = hub
        self._routes: dict[tuple[bool, bytes], _Route] = {}

    def _place(self, pattern: Pattern) -> tuple[bool, bytes]:
        prefix: bytes = self.steps.keys.event_channel(SHARD, "")
        if pattern.exact:
            return False, prefix + pattern.text.encode()
        # Redis' * means more than ours, so what comes is looked at once more.
        escaped = b"".join(b"\\%c" % byte if byte in _GLOB else b"%c" % byte for byte in prefix)
        return True, escaped + pattern.text.encode()

    async def add(self, subscription: LiveSubscription) -> None:
        """Begin to hear what a subscription wants; returns when it is heard."""
        place = self._place(subscription.meant)
        route = self._routes.get(place)
        if route is None:
            skip = len(self.steps.keys.event_channel(SHARD, ""))
            route = self._routes[place] = _Route(place[1], place[0], skip)
        route.subscriptions.append(subscription)
        try:
            async with route.lock:
                if not route.heard:
                    if route.is_pattern:
                        await self._hub.psubscribe(route.key, route.hear_of, lost=route.lost)
                    else:
                        await self._hub.subscribe(route.key, route.hear, lost=route.lost)
                    route.heard = True
        except BaseException:
            route.subscriptions.remove(subscription)
            if not route.subscriptions and self._routes.get(place) is route and not route.heard:
                del self._routes[place]
            raise

    async def remove(self, subscription: LiveSubscription) -> None:
        """Stop to hear what only this subscription wanted."""
        place = self._place(subscription.meant)
        route = self._routes.get(place)
        if route is None or subscription not in route.subscriptions:
            return
        route.subscriptions.remove(subscription)
        async with route.lock:
            if route.subscriptions or not route.heard:
                return
            route.heard = False
            if route.is_pattern:
                await self._hub.punsubscribe(route.key)
            else:
                await self._hub.unsubscribe(route.key)
            if not route.subscriptions and self._routes.get(place) is route:
                del self._routes[place]

    def close(self) -> None:
        """End all subscriptions: the client closes."""
        for route in self._routes.values():
            for subscription in route.subscriptions:
                subscription.abandon()
        self._routes.clear()

    def forget(self) -> None:
        """In a forked child: the subscriptions are the parent's."""
        error: Any = ClosedError("the subscription belongs to the parent process")
        for route in self._routes.values():
            for subscription in route.subscriptions:
                subscription.abandon(error)
        self._routes = {}
