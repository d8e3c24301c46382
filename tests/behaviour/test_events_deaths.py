"""Durable events where consumers die or stand still: what is counted, and what goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_events import EventStore, data_of, soon, take
from fix_state import Raw, until

from llmspell_dist.client import Spell
from llmspell_dist.events import Event

pytestmark = pytest.mark.integration


async def numbers(spell: Spell, count: int, first: int = 0) -> None:
    """Publish so many events that carry their number."""
    await spell.events.publish_many(Event("a", first + number) for number in range(count))


async def begun(spell: Spell, **terms: Any) -> Any:
    """Return a consumer of `q` that is going to die: it is never closed."""
    return await spell.events.subscribe(durable="q", claim_idle=0.05, **terms).__aenter__()


async def dies(spell: Spell, consumer: Any) -> None:
    """End a consumer as the death of its process does: the server is told nothing."""
    for task in consumer._tasks:
        task.cancel()
    await asyncio.gather(*consumer._tasks, return_exceptions=True)
    consumer._closing = True
    spell.events._bells.consumers.discard(consumer)


class Ticking:
    """Time that goes on when the test says so, for who sleeps by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: asyncio.Future[None] | None = None
        self._until = 0.0

    async def sleep(self, seconds: float) -> None:
        self._until = self.now + seconds
        self._due = asyncio.get_running_loop().create_future()
        await self._due

    async def tick(self) -> None:
        """Let the sleeper sleep its time out, and do what it does until it sleeps again."""
        await until(lambda: self._due is not None)
        assert self._due is not None
        due, self._due, self.now = self._due, None, self._until
        due.set_result(None)
        await until(lambda: self._due is not None)


@pytest.mark.parametrize("consumer", [None, "me"])
async def test_a_deadly_event_takes_no_other_with_it(
    spell: Spell, event_store: EventStore, consumer: str | None
) -> None:
    """It is handed out as often as allowed; what was fetched with it is handled afterwards."""
    async with spell.events.subscribe(durable="q"):
        pass
    await numbers(spell, 150)
    deaths = 0
    handled: set[int] = set()
    sub = await begun(spell, consumer=consumer, max_deliveries=3)
    while len(handled) < 149 or not event_store.dead("q"):
        waiting = asyncio.ensure_future(anext(sub))
        await until(lambda: waiting.done() or bool(event_store.dead("q")))  # noqa: B023
        if not waiting.done() and len(handled) == 149:
            waiting.cancel()
            break
        event = await soon(waiting)
        if event.data == 0:
            deaths += 1
            assert sub.deliveries(event) == deaths
            await dies(spell, sub)
            sub = await begun(spell, consumer=consumer, max_deliveries=3)
        else:
            handled.add(event.data)
            await sub.ack(event)
    assert (deaths, handled) == (3, {*range(1, 150)})
    await until(lambda: event_store.dead("q") == 1)
    await sub.close()
    assert event_store.queue("q") == 0
    (letter,) = await spell.events.dead_letters("q")
    assert letter.event is not None
    assert (letter.event.data, letter.deliveries) == (0, 3)


async def test_an_event_that_nobody_began_is_not_given_up(spell: Spell) -> None:
    """Also where one delivery is allowed: it lay in the buffer of a consumer that died."""
    sub = await begun(spell, max_deliveries=1)
    await numbers(spell, 5)
    await take(sub, 1, ack=False)
    await dies(spell, sub)
    async with spell.events.subscribe(durable="q", claim_idle=0.05, max_deliveries=1) as other:
        assert await data_of(other, 5) == [0, 1, 2, 3, 4]


async def test_a_named_consumer_counts_once_for_each_time(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """And only what it handed out, though it gets all that it held, more than a hundred, first."""
    queue = event_store.space.event_queue("0", "q")
    sub = await begun(spell, consumer="me")
    await numbers(spell, 150)
    await take(sub, 150, ack=False)
    for times in (2, 3):
        await dies(spell, sub)
        sub = await begun(spell, consumer="me")
        again = await take(sub, 120, ack=False)
        assert [sub.deliveries(event) for event in again] == [times] * 120
        counts = [one[3] for one in raw("XPENDING", queue, "q", "-", "+", 150)]
        assert counts == [times] * 120 + [1] * 30
    await sub.close()


async def test_a_consumer_that_lost_all_it_held_fetches_again(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """It stood still while others took over and handled what was in its buffer."""
    queue = event_store.space.event_queue("0", "q")
    async with spell.events.subscribe(durable="q", claim_idle=1000) as sub:
        await numbers(spell, 256)
        await until(lambda: sub.stats().waiting == 256)
        ids = [one[0] for one in raw("XPENDING", queue, "q", "-", "+", 256)]
        raw("XCLAIM", queue, "q", "other", 0, *ids, "JUSTID")
        raw("XACK", queue, "q", *ids)
        raw("XDEL", queue, *ids)
        await sub._feed.renew()
        assert (sub.stats().waiting, sub.stats().taken_over) == (0, 256)
        await numbers(spell, 3, first=1000)
        assert await data_of(sub, 3) == [1000, 1001, 1002]


async def test_what_was_dropped_from_a_dead_consumer_stops_nobody(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """It held more than one fetch brings, and the full queue dropped nearly all of it."""
    terms: dict[str, Any] = {
        "capacity": 600,
        "overflow": "drop_oldest",
        "consumer": "me",
        "claim_idle": 1000,
    }
    async with spell.events.subscribe(durable="q", **terms):
        pass
    await numbers(spell, 600)
    queue = event_store.space.event_queue("0", "q")
    raw("XREADGROUP", "GROUP", "q", "me", "COUNT", 600, "STREAMS", queue, ">")
    await numbers(spell, 597, first=600)
    async with spell.events.subscribe(durable="q", **terms) as sub:
        assert sorted(await data_of(sub, 600)) == list(range(597, 1197))
        await sub.flush()
        await until(lambda: event_store.pending("q") == 0)


async def test_a_late_failure_does_not_bury_what_another_works_on(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """The consumer stood still, and another took the event over."""
    async with spell.events.subscribe(durable="q", max_deliveries=1, claim_idle=1000) as sub:
        await numbers(spell, 1)
        (event,) = await take(sub, 1, ack=False)
        queue = event_store.space.event_queue("0", "q")
        ((entry, *_),) = raw("XPENDING", queue, "q", "-", "+", 1)
        raw("XCLAIM", queue, "q", "other", 0, entry, "JUSTID")
        await sub.nack(event, "too late")
        assert (event_store.dead("q"), event_store.pending("q"), event_store.queue("q")) == (
            0,
            1,
            1,
        )
        assert (sub.stats().dead, sub.stats().taken_over) == (0, 1)


async def test_a_wait_that_is_cancelled_loses_no_event_that_comes_again(spell: Spell) -> None:
    """While the server counts the delivery, the event is not handed out yet, and not lost."""
    sub = await begun(spell)
    await numbers(spell, 3)
    await take(sub, 3, ack=False)
    await dies(spell, sub)
    async with spell.events.subscribe(durable="q", claim_idle=0.05) as other:
        await until(lambda: other.stats().waiting == 3)
        waiting = asyncio.ensure_future(anext(other))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (other.stats().waiting, other.stats().unacknowledged) == (3, 0)
        assert await data_of(other, 3) == [0, 1, 2]


async def test_a_dead_consumers_events_are_taken_over_a_third_after_the_claim_time(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """At the latest: whenever it died, others look each third of `claim_idle`."""
    clock = Ticking()
    async with spell.events.subscribe(durable="q"):
        pass
    await numbers(spell, 1)
    queue = event_store.space.event_queue("0", "q")
    ((_, (_, envelope)),) = raw("XRANGE", queue, "-", "+")
    sub = spell.events.subscribe(durable="q", claim_idle=30.0)
    sub._feed._sleep = clock.sleep
    async with sub:
        await take(sub, 1)
        await sub.flush()
        await until(lambda: event_store.idle("q"))
        raw("XADD", queue, "*", "b", envelope)
        raw("XREADGROUP", "GROUP", "q", "dead", "STREAMS", queue, ">")
        ((entry, *_),) = raw("XPENDING", queue, "q", "-", "+", 1)
        died_at = 5.0
        while clock.now < 30 + died_at:
            assert (sub.stats().claimed, sub.stats().waiting) == (0, 0)
            idle_ms = int(1000 * (clock.now + 10.0 - died_at))
            raw("XCLAIM", queue, "q", "dead", 0, entry, "IDLE", idle_ms, "JUSTID")
            await clock.tick()
        await until(lambda: sub.stats().claimed == 1)
        assert clock.now == 40.0
