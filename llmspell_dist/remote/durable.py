"""Durable subscriptions through a sidecar: taken in portions, answered for by receipt.

What was taken is renewed as long as this consumer lives, and given back when it ends. If this
process dies, others get it after the claim time; if the sidecar dies, another goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.events.acking import AckSender
from llmspell_dist.events.consumer import Consumer, said_of
from llmspell_dist.events.steps import Definition, check_overflow
from llmspell_dist.fork import keep_forever
from llmspell_dist.remote.event_documents import event_of

if TYPE_CHECKING:
    from llmspell_dist.events import Event
    from llmspell_dist.events.terms import DurableTerms
    from llmspell_dist.patterns import Pattern
    from llmspell_dist.remote.transport import Transport

__all__ = ["RemoteDurableSubscription"]

logger = logging.getLogger("llmspell_dist.remote")
_AT_ONCE: Final = 64
_WAIT_S: Final = 20.0
_RECEIPTS: Final = 1000
_LEAVE_S: Final = 2.0


class _Held(NamedTuple):
    receipt: str
    deliveries: int
    event: Event


class RemoteDurableSubscription(Consumer[_Held]):
    """A consumer of a durable subscription: every event is handled at least once.

    ``async with`` begins and ends it; it is an asynchronous iterator, for one or several tasks.
    Each event is to be acknowledged with `ack`, or given back with `nack`; see
    `DurableSubscription`, whose promises it keeps. All consumers that go through sidecars are one
    for the server: a name of its own brings nothing back after a restart, the claim time does.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        pattern: Pattern,
        *,
        consumer: str,
        capacity: int | None,
        overflow: str | None,
        terms: DurableTerms,
        ended: Callable[[RemoteDurableSubscription], None],
    ) -> None:
        super().__init__(name, pattern.text, consumer, terms)
        if overflow is not None:
            check_overflow(overflow)
        if capacity is not None and (type(capacity) is not int or capacity < 1):
            raise InvalidArgumentError("capacity", capacity, "must be an int of at least 1")
        self._transport = transport
        self._meant = {"pattern": pattern.text, "capacity": capacity, "overflow": overflow}
        self._left = ended
        self._acks = AckSender(self._acknowledge, most=_RECEIPTS, who=self)
        self._tasks: list[asyncio.Task[None]] = []
        self._room = asyncio.Event()
        self._closing = False

    def _path(self, *more: str) -> tuple[str, ...]:
        return ("v1", "subscriptions", self.name, *more)

    async def _ask(self, what: str, patience_s: float = 0.0, **document: Any) -> Any:
        answer = await self._transport.request(
            "POST", self._path(what), document=document, idempotent=True, patience_s=patience_s
        )
        return answer.document

    # --- what goes out

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            held = await self._next()
            if held.event.ttl is not None and held.event.is_expired():
                self._stats.expired += 1
                self._acks.add(held.receipt)
                continue
            self._out[id(held.event)] = held
            self._stats.delivered += 1
            self._stats.redelivered += held.deliveries > 1
            return held.event

    def _take(self) -> _Held | None:
        if not self._buffer or self._end is not None or len(self._out) >= self.terms.max_unacked:
            return None
        self._room.set()
        return self._buffer.popleft()

    # --- what becomes of it

    async def ack(self, event: Event) -> None:
        """Say that an event was handled: it leaves the queue.

        Returns at once; acknowledgements leave together, in the background. `flush`, and the end of
        the block, wait for that; what is refused `flush` raises, and the end of the block logs.
        """
        held = self._held(event)
        del self._out[id(event)]
        self._stats.acknowledged += 1
        self._acks.add(held.receipt)
        self._settled()

    async def _acknowledge(self, receipts: list[str]) -> None:
        await self._ask("ack", receipts=receipts)

    async def nack(
        self, event: Event, error: BaseException | str | None = None, *, delay: float | None = None
    ) -> None:
        """Say that an event could not be handled: it is delivered again, after a growing delay.

        Or, when it was delivered `max_deliveries` times, goes to the dead letters with the error.
        `delay`: seconds until it comes again, at most `claim_idle`.
        """
        held = self._held(event)
        del self._out[id(event)]
        self._stats.failed += 1
        dead = held.deliveries >= self.terms.max_deliveries
        answer = await self._ask(
            "nack",
            receipts=[held.receipt],
            error=said_of(error)[:2000],
            delay=delay,
            retry_delay=float(self.terms.retry_delay),
            max_deliveries=self.terms.max_deliveries,
        )
        lost = bool(answer["lost"])
        self._stats.taken_over += lost
        self._stats.dead += dead and not lost
        self._settled()

    def _settled(self) -> None:
        self._room.set()
        self._wake()

    async def flush(self) -> None:
        """Wait until the server has every acknowledgement; raises why it does not take them."""
        await self._acks.flush()

    # --- beginning and end

    async def __aenter__(self) -> Self:
        self._begin()
        given = {name: value for name, value in self._meant.items() if value is not None}
        answer = await self._transport.request("PUT", self._path(), document=given, idempotent=True)
        found = answer.document
        self.definition = Definition(found["pattern"], found["capacity"], found["overflow"])
        self._begun = True
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._fill()), loop.create_task(self._tend())]
        return self

    async def _fill(self) -> None:
        """Keep some events ready."""
        backoff = Backoff(first_s=0.05, max_s=2.0)
        while not self._closing:
            waiting = len(self._buffer)
            room = min(_AT_ONCE, self.terms.max_unacked - len(self._out)) - waiting
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                await self._fetch(room)
                backoff.reset()
            except Exception as error:  # noqa: BLE001 - whoever iterates is told, not left waiting
                if not (isinstance(error, SpellError) and error.retryable):
                    self._finish(error)
                    return
                logger.debug("%r: goes on when the sidecar does: %s", self, error)
                await asyncio.sleep(backoff.next_s())

    async def _fetch(self, most: int) -> None:
        answer = await self._ask(
            "fetch",
            _WAIT_S,
            most=most,
            wait=_WAIT_S,
            claim_idle=float(self.terms.claim_idle),
            max_deliveries=self.terms.max_deliveries,
            consumer=self.consumer,
        )
        found = [
            _Held(one["receipt"], one["deliveries"], event_of(one["event"]))
            for one in answer["deliveries"]
        ]
        found.sort(key=lambda held: held.event.priority)
        self._stats.claimed += sum(held.deliveries > 1 for held in found)
        self._buffer.extend(found)
        self._wake(len(found))

    async def _tend(self) -> None:
        """Say that what was taken is worked on still."""
        while True:
            await asyncio.sleep(self.terms.claim_idle / 3)
            try:
                await self._renew()
            except Exception as error:  # noqa: BLE001 - what is no longer kept would go to others
                if not (isinstance(error, SpellError) and error.retryable):
                    self._finish(error)
                    return
                logger.debug("%r: not renewed: %s", self, error)

    async def _renew(self) -> None:
        receipts = [held.receipt for held in (*self._buffer, *self._out.values())]
        for start in range(0, len(receipts), _RECEIPTS):
            answer = await self._ask("renew", receipts=receipts[start : start + _RECEIPTS])
            lost = set(answer["lost"])
            self._stats.taken_over += len(lost)
            self._buffer = deque(one for one in self._buffer if one.receipt not in lost)

    def disown(self) -> None:
        """In a forked child: it is the parent's, with all that it took."""
        keep_forever(self._tasks, self._waiters, self._room)
        self._acks.disown()
        self._closing = True
        self._tasks, self._waiters = [], deque()
        self._buffer, self._out = deque(), {}
        self._end = ClosedError("the subscription belongs to the parent process")

    async def close(self) -> None:
        """Send the acknowledgements, give back what was not handled, leave; twice is allowed."""
        if self._closing or not self._begun:
            return
        self._closing = self._acks.closing = True
        self._finish(None)
        fetching, tending = self._tasks
        tending.cancel()
        self._room.set()
        # Not by cutting the connection: what the sidecar hands out meanwhile must come back.
        with suppress(SpellError):
            await self._ask("leave", consumer=self.consumer)
            await asyncio.wait({fetching}, timeout=_LEAVE_S)
        fetching.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(SpellError):  # the log has it, and the events come again
            await self.flush()
        self._left(self)
        try:
            for held, handled in ((self._buffer, False), (self._out.values(), True), ((), True)):
                receipts = [one.receipt for one in held]
                for start in range(0, max(1, len(receipts)), _RECEIPTS):
                    some = receipts[start : start + _RECEIPTS]
                    await self._ask("release", receipts=some, handled=handled)
        except SpellError as error:
            logger.debug("%r: what it held is claimed later: %s", self, error)
        self._buffer.clear()
        self._out.clear()
