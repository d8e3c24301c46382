"""Durable subscriptions: a queue on the server, shared by consumers, at least once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Self

from llmspell_dist.errors import ClosedError, InvalidArgumentError, StoreUnavailableError
from llmspell_dist.events.consumer import Consumer, said_of
from llmspell_dist.events.feeding import Feed
from llmspell_dist.events.settling import Burial, Held, Settler
from llmspell_dist.fork import keep_forever

if TYPE_CHECKING:
    from llmspell_dist.events.bells import Bells
    from llmspell_dist.events.model import Event
    from llmspell_dist.events.steps import EventSteps
    from llmspell_dist.events.terms import DurableTerms
    from llmspell_dist.patterns import Pattern
    from llmspell_dist.redis.commands import ScriptCall

__all__ = ["DurableSubscription"]

logger = logging.getLogger("llmspell_dist.events")

YIELD_EVERY: Final = 64


class DurableSubscription(Consumer[Held]):
    """A consumer of a durable subscription: every event is handled at least once.

    ``async with`` begins and ends it; it is an asynchronous iterator, for one or several tasks.
    Each event is to be acknowledged, with `ack`, when it was handled, or given back with `nack`;
    what is not is delivered again, to this consumer or, when it died, to another. After
    `max_deliveries` failures an event goes to the dead letters, and so do bytes that are no event.

    Consumers of one name share the events: each goes to one of them. Events come in the order in
    which they were published, with two exceptions: what is delivered again comes later, and of
    those that were fetched together the ones with a lower `Event.priority` come first.

    Lost connections and restarted servers are survived: it goes on where it was. It ends with
    `SubscriptionNotFoundError` when somebody removes the subscription.
    """

    def __init__(
        self,
        steps: EventSteps,
        execute: Callable[[ScriptCall], Awaitable[Any]],
        bells: Bells,
        name: str,
        pattern: Pattern,
        *,
        consumer: str | None = None,
        capacity: int | None = None,
        overflow: str | None = None,
        terms: DurableTerms,
        default_consumer: str,
    ) -> None:
        consumer_name = default_consumer if consumer is None else consumer
        super().__init__(name, pattern.text, consumer_name, terms)
        self._named = consumer is not None
        self._steps = steps
        self._execute = execute
        self._bells = bells
        self._register = steps.subscribe_call(name, pattern, capacity, overflow)
        self._meant = pattern
        me = self.consumer.encode()
        self._settler = Settler(
            steps, execute, self.name, me, stats=self._stats, again=self._handed_again
        )
        self._feed = Feed(
            *(steps, execute, self.name, me),
            terms=terms,
            stats=self._stats,
            settler=self._settler,
            came=self._wake,
            ended=self._finish,
        )
        self._buffer, self._out = self._feed.buffer, self._feed.out
        self._delayed = self._settler.delayed
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._handed = 0

    # --- what goes out

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        self._handed += 1
        if self._handed % YIELD_EVERY == 0:
            # A loop that never waits would stop what brings and acknowledges.
            await asyncio.sleep(0)
        while True:
            held = await self._next()
            if held.event.ttl is not None and held.event.is_expired():
                self._stats.expired += 1
                self._settler.done(held)
                continue
            self._out[id(held.event)] = held
            if not held.counted and not await self._counted(held):
                continue
            held.handed = True
            self._stats.delivered += 1
            self._stats.redelivered += held.deliveries > 1
            return held.event

    def _take(self) -> Held | None:
        if not self._buffer or self._end is not None:
            return None
        if len(self._out) + len(self._delayed) >= self.terms.max_unacked:
            logger.debug("%r: %d events are unacknowledged", self, len(self._out))
            return None
        held = self._buffer.popleft()
        self._feed.eased()
        return held

    async def _counted(self, held: Held) -> bool:
        """Have the server count a delivery, before it is handed out."""
        counted = lost = False
        try:
            counted = await self._settler.count(held)
            lost = not counted
            self._stats.taken_over += lost
        except StoreUnavailableError:
            if self._end is None:
                raise
        finally:
            given = counted and self._end is None
            if not given:
                self._out.pop(id(held.event), None)
                if lost:
                    self._feed.eased()
                else:
                    self._buffer.appendleft(held)
                self._wake()
        return given

    def _handed_again(self, held: Held) -> None:
        self._buffer.append(held)
        self._wake()

    # --- what becomes of it

    async def ack(self, event: Event) -> None:
        """Say that an event was handled: it leaves the queue.

        Returns at once; acknowledgements leave together, in the background, and are sent again
        until the server has them. `flush`, and the end of the block, wait for that; if the server
        refuses them, `flush` raises that, and the end of the block logs it. What a process did not
        get rid of is delivered again.
        """
        held = self._out.pop(id(event), None) or self._held(event)
        self._stats.acknowledged += 1
        self._settler.done(held)
        self._feed.eased()
        if self._waiters:
            self._wake()

    async def nack(
        self, event: Event, error: BaseException | str | None = None, *, delay: float | None = None
    ) -> None:
        """Say that an event could not be handled: it is delivered again, after a growing delay.

        Or, when it was delivered `max_deliveries` times, goes to the dead letters with the error.
        `delay`: seconds until it comes again, instead of the growing ones.
        """
        held = self._held(event)
        if delay is not None and (type(delay) not in (int, float) or not 0 <= delay <= 86_400):
            raise InvalidArgumentError("delay", delay, "must be 0 to 86,400 seconds")
        del self._out[id(event)]
        self._stats.failed += 1
        terms = self.terms
        if held.deliveries >= terms.max_deliveries:
            shown = type(error).__name__ if isinstance(error, BaseException) else ""
            burial = Burial("failed", held.deliveries, said_of(error), shown, held.event.id)
            await self._settler.bury(held.entry, burial)
        else:
            if delay is None:
                delay = terms.pause_s(held.deliveries)
            self._settler.later(held, delay)
        self._feed.eased()
        self._wake()

    async def flush(self) -> None:
        """Wait until the server has every acknowledgement; raises why it does not take them."""
        await self._settler.acks.flush()

    # --- beginning and end

    async def __aenter__(self) -> Self:
        self._begin()
        reply = await self._execute(self._register)
        self.definition = self._steps.read_subscribed(self.name, self._meant, reply)
        feed = self._feed
        await self._bells.add(self.name, feed.ring)
        self._bells.join(self)
        self._begun = True
        feed.resuming = self._named  # what this consumer held when it was stopped comes first
        feed.claim_now = True
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(feed.run()), loop.create_task(feed.tend())]
        return self

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        keep_forever(self._tasks, self._waiters)
        self._settler.disown()
        self._closing = True
        self._waiters = deque()
        self._end = ClosedError("the subscription belongs to the parent process")

    async def close(self) -> None:
        """Send the acknowledgements, give back what was not handled, leave; twice is allowed."""
        if self._closing or not self._begun:
            return
        self._closing = True
        self._finish(None)
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._settler.close()
        finally:
            self._bells.leave(self)
        try:
            await self._feed.release()
            await self._bells.remove(self.name, self._feed.ring)
        except (StoreUnavailableError, ClosedError) as error:
            logger.debug("%r: what it held is claimed later: %s", self, error)
