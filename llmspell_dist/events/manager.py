"""Events, asynchronous: publish, hear live, handle durably, look at queues and dead letters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, overload

from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.events.bells import Bells
from llmspell_dist.events.consuming import check_handler, handle_all
from llmspell_dist.events.durable import DurableSubscription
from llmspell_dist.events.emitting import Emitter
from llmspell_dist.events.live import DEFAULT_BUFFER, LiveSubscription, Pressure, Router
from llmspell_dist.events.looking import EventLooks
from llmspell_dist.events.model import Event
from llmspell_dist.events.publishing import Publisher, PublisherStats
from llmspell_dist.events.rate import RateLimit
from llmspell_dist.events.steps import (
    EventSteps,
    check_durable,
    check_live,
    check_name,
    new_event,
)
from llmspell_dist.events.terms import ConsumerStats, DurableTerms
from llmspell_dist.events.tracing import publishing, traced, traced_all
from llmspell_dist.fork import on_fork
from llmspell_dist.patterns import Pattern

if TYPE_CHECKING:
    from datetime import datetime

    from llmspell_dist.events.consuming import Handler
    from llmspell_dist.events.emitting import EventObserver
    from llmspell_dist.observation import Observer
    from llmspell_dist.redis.hub import Hub
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Events", "check_timeout"]

logger = logging.getLogger("llmspell_dist.events")


class Events(EventLooks):
    """Events between processes: whoever publishes does not know who hears.

    Two kinds of delivery, which the subscriber chooses. *Live*: cheap, from now on, at most once;
    what comes while there is no connection, or faster than the buffer is emptied, is lost and
    counted. *Durable*: a queue on the server per name, at least once, shared by all consumers of
    that name, and it goes on after restarts.

    Raised everywhere: `InvalidArgumentError` before anything is sent, and `StoreUnavailableError`
    and its children when the server cannot be reached in time.
    """

    def __init__(self, driver: AsyncDriver, hub: Hub) -> None:
        self._driver = driver
        self._steps = EventSteps(driver.core)
        super().__init__(self._steps, driver.run)
        self._publisher = Publisher(self._steps, driver.execute)
        self._emitter = Emitter(self._steps, self._publisher)
        self._router = Router(self._steps, hub)
        self._bells = Bells(self._steps, hub)
        self._consumers = count(1)
        on_fork(self)

    @property
    def _tracing(self) -> Observer:
        return self._driver.core.observer

    @property
    def observer(self) -> EventObserver | None:
        """Who is told of what happens to events; hooks, once a client has them."""
        return self._emitter.observer

    @observer.setter
    def observer(self, observer: EventObserver | None) -> None:
        self._emitter.observer = observer

    # --- publishing

    async def publish(
        self,
        type: str,  # noqa: A002 - the field's name
        data: Any = None,
        *,
        source: str | None = None,
        target: str | None = None,
        tags: Iterable[str] = (),
        priority: int = 0,
        ttl: float | timedelta | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        id: str | None = None,  # noqa: A002 - the field's name
        time: datetime | None = None,
        timeout: float = 30.0,
    ) -> Event:
        """Publish an event and return it: every durable subscription that means it has it then.

        It goes into all of their queues or, if one of them is full, into none: a queue with
        ``block`` lets the publisher wait for room, at most `timeout` seconds
        (`PublishBlockedError`), one with ``reject`` raises `PublishRejectedError`. A lost
        connection is survived by sending again, which stores nothing twice; only an error with
        ``may_have_happened`` leaves open whether it was stored.

        The fields are those of `Event`.
        """
        event = new_event(
            type,
            data,
            source=source,
            target=target,
            tags=tags,
            priority=priority,
            ttl=ttl,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
            event_id=id,
            time=time,
        )
        return await self.publish_event(event, timeout=timeout)

    async def publish_event(self, event: Event, *, timeout: float = 30.0) -> Event:
        """Publish an event that was made already; see `publish`."""
        if not isinstance(event, Event):
            raise InvalidArgumentError("event", event, "must be an Event")
        check_timeout(timeout)
        observer = self._driver.core.observer
        if not observer.tracing:
            return await self._emitter.emit(event, timeout)
        with observer.span("event.publish", "producer", publishing(event)):
            return await self._emitter.emit(traced(event, observer), timeout)

    async def publish_many(self, events: Iterable[Event], *, timeout: float = 30.0) -> int:
        """Publish events in their order, some hundred in a round trip; return how many.

        Each event is stored whole or not at all; they are no transaction. The first one that is
        refused raises. Those before it stay published, and those behind it may be: the ones that
        had left with it, up to some hundred, are stored where their queues have room. What waits
        for room in a queue is not passed by what comes later and means the same queue. When the
        server cannot take a part and another part is stored, the error has ``may_have_happened``;
        a refusal is not ``retryable`` then.
        """
        check_timeout(timeout)
        if isinstance(events, Event):
            raise InvalidArgumentError("events", events, "must be several events, not one")
        observer = self._driver.core.observer
        if not observer.tracing:
            return await self._emitter.emit_many(events, timeout)
        events = list(events)
        with observer.span("event.publish", "producer", publishing(*events)):
            return await self._emitter.emit_many(traced_all(events, observer), timeout)

    def limit_rate(self, limit: RateLimit | None) -> None:
        """Limit how fast this client publishes, from now on; None: no longer (the default)."""
        if limit is not None and not isinstance(limit, RateLimit):
            raise InvalidArgumentError("limit", limit, "must be a RateLimit or None")
        self._emitter.limit = limit

    def stats(self) -> PublisherStats:
        """Return what became of the events that this client published."""
        return replace(self._publisher.stats)

    def consumed(self) -> dict[str, ConsumerStats]:
        """Return what the consumers of this client did, by durable subscription."""
        return self._bells.totals()

    # --- subscribing

    @overload
    def subscribe(
        self,
        pattern: str = "*",
        *,
        durable: None = None,
        buffer: int = DEFAULT_BUFFER,
        overflow: str | None = None,
        high: int | None = None,
        low: int | None = None,
        on_pressure: Pressure | None = None,
    ) -> LiveSubscription: ...

    @overload
    def subscribe(
        self,
        pattern: str = "*",
        *,
        durable: str,
        consumer: str | None = None,
        capacity: int | None = None,
        overflow: str | None = None,
        max_deliveries: int = 5,
        claim_idle: float = 30.0,
        retry_delay: float = 0.5,
        max_unacked: int = 1000,
    ) -> DurableSubscription: ...

    def subscribe(
        self,
        pattern: str = "*",
        *,
        durable: str | None = None,
        consumer: str | None = None,
        capacity: int | None = None,
        overflow: str | None = None,
        max_deliveries: int = 5,
        claim_idle: float = 30.0,
        retry_delay: float = 0.5,
        max_unacked: int = 1000,
        buffer: int = DEFAULT_BUFFER,
        high: int | None = None,
        low: int | None = None,
        on_pressure: Pressure | None = None,
    ) -> LiveSubscription | DurableSubscription:
        """Hear events: ``async with events.subscribe("state.*") as heard``, then ``async for``.

        `pattern`: an exact type, ``*`` for all, ``state.*`` for all below, ``state.*.changed``.

        Live, without `durable`. `buffer`: so many events wait for the program; over that
        `overflow` is ``drop_oldest`` (default), ``drop_newest`` or ``reject``, which ends the
        subscription with `SubscriberTooSlowError`. `on_pressure` is called when the buffer rises
        over `high` (default 80 %) and when it falls below `low` (20 %).

        Durable, with the name of the queue in `durable`: made if there is none, and kept until
        `remove`. `capacity` and `overflow` say what happens when the consumers fall behind:
        ``block`` (default, publishers wait), ``drop_oldest``, ``drop_newest``, ``reject``; they are
        those of the queue, and change it if given. `consumer`: a name that survives restarts, so
        that what it had not acknowledged comes first; by default one of its own.
        `max_deliveries`, `claim_idle` (seconds after which others take over what a dead consumer
        held), `retry_delay` (doubled with each failure) and `max_unacked` (so many events it holds
        at most, fetched or handed out; others of the name get the rest) are this consumer's.

        Raises `SubscriptionExistsError`, when it begins, if the queue has another pattern.
        """
        meant = Pattern(pattern)
        if durable is None:
            check_live(
                consumer=(consumer, None),
                capacity=(capacity, None),
                max_deliveries=(max_deliveries, 5),
                claim_idle=(claim_idle, 30.0),
                retry_delay=(retry_delay, 0.5),
                max_unacked=(max_unacked, 1000),
            )
            return LiveSubscription(
                self._router,
                meant,
                buffer=buffer,
                overflow="drop_oldest" if overflow is None else overflow,
                high=high,
                low=low,
                on_pressure=on_pressure,
            )
        check_durable(
            buffer=(buffer, DEFAULT_BUFFER),
            high=(high, None),
            low=(low, None),
            on_pressure=(on_pressure, None),
        )
        terms = DurableTerms(
            max_deliveries=max_deliveries,
            claim_idle=claim_idle,
            retry_delay=retry_delay,
            max_unacked=max_unacked,
        )
        return self._durable(
            durable, meant, consumer=consumer, capacity=capacity, overflow=overflow, terms=terms
        )

    def _durable(
        self,
        name: str,
        pattern: Pattern,
        *,
        consumer: str | None,
        capacity: int | None,
        overflow: str | None,
        terms: DurableTerms,
    ) -> DurableSubscription:
        return DurableSubscription(
            self._steps,
            self._driver.execute,
            self._bells,
            name,
            pattern,
            consumer=consumer,
            capacity=capacity,
            overflow=overflow,
            terms=terms,
            default_consumer=f"{self._steps.client}-{next(self._consumers)}",
        )

    async def consume(
        self,
        name: str,
        pattern: str,
        handler: Handler,
        *,
        concurrency: int = 1,
        consumer: str | None = None,
        capacity: int | None = None,
        overflow: str | None = None,
        max_deliveries: int = 5,
        claim_idle: float = 30.0,
        retry_delay: float = 0.5,
        max_unacked: int | None = None,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Have every event of a durable subscription handled, until cancelled or `stop` is set.

        When `handler(event)` returns, the event is acknowledged; when it raises, it is delivered
        again later, and after `max_deliveries` failures goes to the dead letters. `concurrency`
        handlers run at a time, and with more than one the order is not kept. A handler that runs
        when this ends is finished first, unless it is cancelled. `max_unacked` is 1,000, or
        `concurrency` if that is more; where handlers take long, `concurrency` leaves other
        consumers what this one cannot begin yet. The other arguments are those of `subscribe`.
        """
        check_handler(handler, concurrency)
        subscription = self.subscribe(
            pattern,
            durable=check_name(name),
            consumer=consumer,
            capacity=capacity,
            overflow=overflow,
            max_deliveries=max_deliveries,
            claim_idle=claim_idle,
            retry_delay=retry_delay,
            max_unacked=max(1000, concurrency) if max_unacked is None else max_unacked,
        )
        async with subscription:
            await handle_all(
                subscription,
                handler,
                concurrency=concurrency,
                stop=stop,
                failed=self.failed,
                observer=self._tracing,
            )

    async def failed(self, name: str, event: Event, error: Exception) -> None:
        """Tell the observer that a handler of a durable subscription raised."""
        await self._emitter.failed(name, event, error)

    # --- the end

    async def close(self) -> None:
        """End all subscriptions, and wait for what is being published; twice is allowed."""
        self._router.close()
        self._bells.closed = True
        for consumer in tuple(self._bells.consumers):
            try:
                await consumer.close()
            except (SpellError, ClosedError) as error:
                logger.debug("%r: what it held is claimed later: %s", consumer, error)
        await self._publisher.close()

    def forget(self) -> None:
        """In a forked child: subscriptions are the parent's, and so is what is under way."""
        self._router.forget()
        for consumer in self._bells.consumers:
            consumer.disown()
        self._bells.forget()
        self._publisher.forget()
        self._steps.new_client()


def check_timeout(timeout: object) -> None:
    """Refuse what is no time to wait for room in a queue."""
    if type(timeout) not in (int, float) or not 0 <= timeout <= 86_400:  # type: ignore[operator]
        raise InvalidArgumentError("timeout", timeout, "must be 0 to 86,400 seconds")
