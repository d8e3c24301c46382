"""The way of an event from `publish` to the wire: observer, encoding, rate limit, batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.batches import BATCH, in_parts
from llmspell_dist.events.model import Event

if TYPE_CHECKING:
    from llmspell_dist.events.batches import Batch
    from llmspell_dist.events.publishing import Publisher
    from llmspell_dist.events.rate import RateLimit
    from llmspell_dist.events.steps import EventSteps, Packed

__all__ = ["Emitter", "EventObserver"]

logger = logging.getLogger("llmspell_dist.events")


class EventObserver(Protocol):
    """Is told of what happens to events; the composition root puts the hooks behind it."""

    def watches(self, event_type: str = "") -> bool:
        """Return whether `before_emit` or `after_emit` would do anything now."""

    async def before_emit(self, event: Event) -> Event:
        """Return the event to publish, the same or another; what it raises, `publish` raises."""

    async def after_emit(self, event: Event) -> None:
        """Learn that an event was published."""

    async def handler_failed(self, event: Event, subscription: str, error: Exception) -> None:
        """Learn that a handler of `Events.consume` raised."""


class Emitter:
    """Publishes events as observer and rate limit allow."""

    def __init__(self, steps: EventSteps, publisher: Publisher) -> None:
        self._steps = steps
        self._publisher = publisher
        self.limit: RateLimit | None = None
        self.observer: EventObserver | None = None

    def _watching(self, event_type: str = "") -> EventObserver | None:
        """Return the observer if it wants to be told of what is published."""
        observer = self.observer
        return observer if observer is not None and observer.watches(event_type) else None

    async def emit(self, event: Event, timeout_s: float) -> Event:
        """Publish one event, and return it as the observer wanted it."""
        observer = self._watching(event.type)
        if observer is not None:
            event = await observer.before_emit(event)
        packed = self._steps.packed(event)
        limit = self.limit
        if limit is None or await limit.admit(event.type, self._publisher.stats):
            await self._publisher.publish(packed, timeout_s)
            observer = self._watching()
            if observer is not None:
                await observer.after_emit(event)
        return event

    async def emit_many(self, events: Iterable[Event], timeout_s: float) -> int:
        """Publish events in their order, a batch in a round trip; return how many."""
        with in_parts() as stored:
            await self._emit_all(events, timeout_s, stored)
        return sum(stored)

    async def _emit_all(self, events: Iterable[Event], timeout_s: float, stored: list[int]) -> None:
        loop = asyncio.get_running_loop()
        sending: asyncio.Task[None] | None = None
        batch: list[Packed] = []
        try:
            for event in events:
                if not isinstance(event, Event):
                    raise InvalidArgumentError("events", event, "must be Event objects")
                observer = self._watching(event.type)
                if observer is None and self.limit is None:
                    packed: Packed | None = self._steps.packed(event)
                else:
                    packed = await self._admitted(event, observer)
                if packed is not None:
                    batch.append(packed)
                if len(batch) == BATCH:
                    if sending is not None:
                        await sending
                    begun = self._publisher.begin(batch, timeout_s)
                    sending = loop.create_task(self._sent(batch, begun, stored))
                    batch = []
                    await asyncio.sleep(0)  # now it leaves: the server works while more is encoded
        finally:
            if sending is not None:
                await sending
        if batch:
            await self._sent(batch, self._publisher.begin(batch, timeout_s), stored)

    async def _admitted(self, event: Event, observer: EventObserver | None) -> Packed | None:
        if observer is not None:
            event = await observer.before_emit(event)
        packed = self._steps.packed(event)
        limit = self.limit
        if limit is None or limit.take() or await limit.admit(event.type, self._publisher.stats):
            return packed
        return None

    async def _sent(self, batch: Sequence[Packed], begun: list[Batch], stored: list[int]) -> None:
        await self._publisher.finish(begun)
        stored.append(len(batch))
        observer = self._watching()
        if observer is not None:
            for packed in batch:
                await observer.after_emit(packed.event)

    async def failed(self, name: str, event: Event, error: Exception) -> None:
        """Tell the observer that a handler of a durable subscription raised."""
        logger.debug("a handler of %r failed: %s", name, type(error).__name__)
        if self.observer is not None:
            try:
                await self.observer.handler_failed(event, name, error)
            except Exception:
                logger.exception("the observer of events failed")
