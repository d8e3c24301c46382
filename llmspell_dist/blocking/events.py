"""Events for threads: the asynchronous ones, in the background's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime, timedelta
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from llmspell_dist.closing import Closing
from llmspell_dist.events.batches import in_parts
from llmspell_dist.events.consuming import check_handler
from llmspell_dist.events.durable import DurableSubscription as AsyncDurable
from llmspell_dist.events.emitting import EventObserver
from llmspell_dist.events.live import DEFAULT_BUFFER, LiveStats, Pressure
from llmspell_dist.events.live import LiveSubscription as AsyncLive
from llmspell_dist.events.looking import DeadLetter, SubscriptionInfo
from llmspell_dist.events.manager import Events as AsyncEvents
from llmspell_dist.events.model import Event
from llmspell_dist.events.publishing import PublisherStats
from llmspell_dist.events.rate import RateLimit
from llmspell_dist.events.steps import check_name, new_event
from llmspell_dist.events.terms import ConsumerStats

if TYPE_CHECKING:
    from llmspell_dist.blocking.backstage import Backstage

__all__ = ["DurableSubscription", "Events", "LiveSubscription"]

S = TypeVar("S", AsyncLive, AsyncDurable)
_LOOK_EVERY_S: Final = 0.1
_AT_ONCE: Final = 64


class _Subscription(Closing, Generic[S]):
    """What the two kinds have in common."""

    def __init__(self, backstage: Backstage, inner: S) -> None:
        self._backstage = backstage
        self._inner: S = inner
        self.pattern = inner.pattern

    def __repr__(self) -> str:
        return repr(self._inner)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float | None = None) -> Event | None:
        """Return the next event; None if there is none within so many seconds, or no more."""
        return self._backstage.run(_next(self._inner, timeout))

    def close(self) -> None:
        """End it."""
        self._backstage.run(self._inner.close())

    def __enter__(self) -> Self:
        self._backstage.run(self._inner.__aenter__())
        return self


class LiveSubscription(_Subscription[AsyncLive]):
    """Events as they are published: at most once, from now on, while there is a connection.

    An iterator, for one or several threads; ``with`` begins and ends it. See
    `llmspell_dist.events.LiveSubscription`.
    """

    def __init__(self, backstage: Backstage, inner: AsyncLive) -> None:
        super().__init__(backstage, inner)
        self._taken: deque[Event] = deque()

    def next(self, timeout: float | None = None) -> Event | None:
        """Return the next event; None if there is none within so many seconds, or no more."""
        try:
            return self._taken.popleft()
        except IndexError:
            pass
        # Several at once, since each way to the background and back takes its time.
        taken = self._backstage.run(_several(self._inner, timeout))
        if not taken:
            return None
        self._taken.extend(taken[1:])
        return taken[0]

    def stats(self) -> LiveStats:
        """Return the counters as they are now."""
        return self._inner.stats()


class DurableSubscription(_Subscription[AsyncDurable]):
    """A consumer of a durable subscription: every event is handled at least once.

    An iterator, for one or several threads; ``with`` begins and ends it. See
    `llmspell_dist.events.DurableSubscription`.
    """

    def __init__(self, backstage: Backstage, inner: AsyncDurable) -> None:
        super().__init__(backstage, inner)
        self.name = inner.name
        self.consumer = inner.consumer

    def deliveries(self, event: Event) -> int:
        """Return how often an event that was handed out has been delivered, this time included."""
        return self._inner.deliveries(event)

    def ack(self, event: Event) -> None:
        """Say that an event was handled: it leaves the queue."""
        self._backstage.run(self._inner.ack(event))

    def nack(
        self, event: Event, error: BaseException | str | None = None, *, delay: float | None = None
    ) -> None:
        """Say that an event could not be handled: it is delivered again, after a growing delay."""
        self._backstage.run(self._inner.nack(event, error, delay=delay))

    def flush(self) -> None:
        """Wait until the server has every acknowledgement; raises why it does not take them."""
        self._backstage.run(self._inner.flush())

    def drain(self) -> None:
        """Hand out nothing more: the iterations stop, acknowledging goes on until `close`."""
        self._backstage.call(self._inner.drain)

    def stats(self) -> ConsumerStats:
        """Return the counters as they are now."""
        return self._inner.stats()


class Events:
    """Events between processes, for threads; the same promises as `llmspell_dist.events.Events`.

    They live in the background's event loop, which the first use starts.
    """

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage
        self._inner = AsyncEvents(backstage.driver, backstage.hub)
        backstage.at_end(self._inner.close)

    @property
    def observer(self) -> EventObserver | None:
        """Who is told of what happens to events; its coroutines run in the background."""
        return self._inner.observer

    @observer.setter
    def observer(self, observer: EventObserver | None) -> None:
        self._inner.observer = observer

    def consumed(self) -> dict[str, ConsumerStats]:
        """Return what the consumers of this client did, by durable subscription."""
        return self._inner.consumed()

    # --- publishing

    def publish(
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
        """Publish an event and return it: every durable subscription that means it has it then."""
        event = new_event(  # here, where the caller's context is in force
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
        return self.publish_event(event, timeout=timeout)

    def publish_event(self, event: Event, *, timeout: float = 30.0) -> Event:
        """Publish an event that was made already; see `publish`."""
        return self._backstage.run(self._inner.publish_event(event, timeout=timeout))

    def publish_many(self, events: Iterable[Event], *, timeout: float = 30.0) -> int:
        """Publish events in their order, some hundred in a round trip; return how many."""
        if not isinstance(events, (Event, list, tuple)) and isinstance(events, Iterable):
            # A generator of the caller's may wait: not in the background.
            with in_parts() as stored:
                for chunk in _chunks(events):
                    publishing = self._inner.publish_many(chunk, timeout=timeout)
                    stored.append(self._backstage.run(publishing))
            return sum(stored)
        return self._backstage.run(self._inner.publish_many(events, timeout=timeout))

    def limit_rate(self, limit: RateLimit | None) -> None:
        """Limit how fast this client publishes, from now on; None: no longer (the default)."""
        self._inner.limit_rate(limit)

    def stats(self) -> PublisherStats:
        """Return what became of the events that this client published."""
        return self._inner.stats()

    # --- subscribing

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
    ) -> Any:
        """Hear events, live or, with `durable`, from a queue; ``with`` begins and ends it.

        Returns a `LiveSubscription` or a `DurableSubscription`; `on_pressure` is called in the
        background.
        """
        make: Any = self._inner.subscribe  # either kind, as `durable` says
        inner: Any = make(
            pattern,
            durable=durable,
            consumer=consumer,
            capacity=capacity,
            overflow=overflow,
            max_deliveries=max_deliveries,
            claim_idle=claim_idle,
            retry_delay=retry_delay,
            max_unacked=max_unacked,
            buffer=buffer,
            high=high,
            low=low,
            on_pressure=on_pressure,
        )
        if durable is None:
            return LiveSubscription(self._backstage, inner)
        return DurableSubscription(self._backstage, inner)

    def consume(
        self,
        name: str,
        pattern: str,
        handler: Callable[[Event], Any],
        *,
        concurrency: int = 1,
        consumer: str | None = None,
        capacity: int | None = None,
        overflow: str | None = None,
        max_deliveries: int = 5,
        claim_idle: float = 30.0,
        retry_delay: float = 0.5,
        max_unacked: int | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Have every event of a durable subscription handled, until `stop` is set.

        The handler runs in this thread, with `concurrency` over 1 in so many others; a coroutine
        function runs in the background's event loop. When it returns, the event is acknowledged;
        when it raises, it is delivered again. `max_unacked` is 1,000; where handlers take long,
        `concurrency` leaves other consumers what this one cannot begin yet. The other arguments
        are those of `subscribe`.
        """
        check_handler(handler, concurrency, most=1000)
        subscription = self.subscribe(
            pattern,
            durable=check_name(name),
            consumer=consumer,
            capacity=capacity,
            overflow=overflow,
            max_deliveries=max_deliveries,
            claim_idle=claim_idle,
            retry_delay=retry_delay,
            max_unacked=1000 if max_unacked is None else max_unacked,
        )
        ended = threading.Event()

        def work() -> None:
            try:
                while not ended.is_set() and (stop is None or not stop.is_set()):
                    event = subscription.next(None if stop is None else _LOOK_EVERY_S)
                    if event is not None:
                        self._handle(subscription, handler, event)
                    elif stop is None:
                        return
            finally:
                ended.set()
                subscription.drain()

        with subscription:
            if concurrency == 1:
                work()
                return
            with ThreadPoolExecutor(concurrency, "llmspell-events") as pool:
                waiting = [pool.submit(copy_context().run, work) for _ in range(concurrency)]
            for one in waiting:
                one.result()

    def _handle(
        self, subscription: DurableSubscription, handler: Callable[[Event], Any], event: Event
    ) -> None:
        try:
            result = handler(event)
            if isawaitable(result):
                self._backstage.run(_awaited(result))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is a failure of it
            self._backstage.run(self._inner.failed(subscription.name, event, error))
            subscription.nack(event, error)
        else:
            subscription.ack(event)

    # --- looking

    def subscriptions(self) -> list[SubscriptionInfo]:
        """Return every durable subscription of the namespace by name, with what waits in it."""
        return self._backstage.run(self._inner.subscriptions())

    def remove(self, name: str) -> bool:
        """End a durable subscription, with queue and dead letters; return whether it existed."""
        return self._backstage.run(self._inner.remove(name))

    def dead_letters(
        self, name: str, *, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        """Return the dead letters of a durable subscription, oldest first; `after`: an id."""
        return self._backstage.run(self._inner.dead_letters(name, limit=limit, after=after))

    def replay(self, name: str, ids: Iterable[str] | str) -> int:
        """Put dead letters back into the queue, as new events at its end; return how many were."""
        return self._backstage.run(self._inner.replay(name, ids))

    def delete_dead(self, name: str, ids: Iterable[str] | str) -> int:
        """Delete dead letters; return how many there were."""
        return self._backstage.run(self._inner.delete_dead(name, ids))


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


async def _next(inner: AsyncLive | AsyncDurable, timeout_s: float | None) -> Event | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await inner.__anext__()
    except (TimeoutError, StopAsyncIteration):
        return None


async def _several(inner: AsyncLive, timeout_s: float | None) -> list[Event]:
    first = await _next(inner, timeout_s)
    if first is None:
        return []
    taken = [first]
    while len(taken) < _AT_ONCE and (event := inner.take_one()) is not None:
        taken.append(event)
    return taken


def _chunks(events: Iterable[Event]) -> Iterator[list[Event]]:
    chunk: list[Event] = []
    for event in events:
        chunk.append(event)
        if len(chunk) == 1024:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
