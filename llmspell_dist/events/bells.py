"""The bells of durable queues: one channel a subscription, heard for all consumers of a client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import ClosedError, StoreUnavailableError
from llmspell_dist.events.steps import SHARD
from llmspell_dist.events.terms import ConsumerStats

if TYPE_CHECKING:
    from llmspell_dist.events.steps import EventSteps
    from llmspell_dist.redis.hub import Hub

__all__ = ["Bells"]

logger = logging.getLogger("llmspell_dist.events")


class Bells:
    """Calls consumers when there is something new for them, or may be."""

    def __init__(self, steps: EventSteps, hub: Hub) -> None:
        self._steps = steps
        self._hub = hub
        self._listeners: dict[str, list[Callable[[bytes], None]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._heard: set[str] = set()
        self.consumers: set[Any] = set()
        """The consumers that have begun and not ended."""
        self.ended: dict[str, ConsumerStats] = {}
        """By queue: what those did that have ended."""
        self.closed = False

    async def add(self, name: str, listener: Callable[[bytes], None]) -> None:
        """Have a consumer called; where channels are forbidden it has to look now and then."""
        self._listeners.setdefault(name, []).append(listener)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self._heard:
                return
            channel = self._steps.keys.event_bell(SHARD, name)

            def ring(message: bytes) -> None:
                for one in tuple(self._listeners.get(name, ())):
                    one(message)

            try:
                await self._hub.subscribe(channel, ring, resumed=lambda: ring(b"r"))
                self._heard.add(name)
            except StoreUnavailableError as error:
                logger.warning("no bell for %r, its consumers look now and then: %s", name, error)
            except BaseException:
                self._listeners[name].remove(listener)
                raise

    def join(self, consumer: Any) -> None:
        """Take note that a consumer begins; refused once the client closes."""
        if self.closed:
            raise ClosedError("the client is closed")
        self.consumers.add(consumer)

    def leave(self, consumer: Any) -> None:
        """Take note that a consumer has ended."""
        self.consumers.discard(consumer)
        total = self.ended.setdefault(consumer.name, ConsumerStats())
        total.add(consumer.stats())

    def totals(self) -> dict[str, ConsumerStats]:
        """Return what all consumers of this client did, by queue."""
        totals = {name: replace(stats) for name, stats in self.ended.items()}
        for consumer in tuple(self.consumers):
            totals.setdefault(consumer.name, ConsumerStats()).add(consumer.stats())
        return totals

    async def remove(self, name: str, listener: Callable[[bytes], None]) -> None:
        """Call a consumer no longer."""
        listeners = self._listeners.get(name, [])
        if listener in listeners:
            listeners.remove(listener)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if not self._listeners.get(name) and name in self._heard:
                self._heard.discard(name)
                await self._hub.unsubscribe(self._steps.keys.event_bell(SHARD, name))

    def forget(self) -> None:
        """In a forked child: all of it is the parent's."""
        self._listeners, self._locks, self._heard = {}, {}, set()
        self.consumers = set()
        self.ended = {}
