"""Each publisher's events keep their order in every queue, also where they wait for room."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from fix_events import EventStore, data_of, soon, take
from fix_servers import Server
from fix_state import until

from llmspell_dist import connect
from llmspell_dist.client import Spell
from llmspell_dist.errors import ClosedError
from llmspell_dist.events import Event, PublishBlockedError, PublishRejectedError

pytestmark = pytest.mark.integration


async def registered(spell: Spell, name: str, pattern: str = "*", **terms: object) -> None:
    """Make a durable subscription and leave it."""
    async with spell.events.subscribe(pattern, durable=name, **terms):  # type: ignore[call-overload]
        pass


async def test_batches_that_wait_stay_in_order(spell: Spell, server: Server) -> None:
    """Events of several batches and of single calls, all under way when the queue is full."""
    total = 3000 if "process" in server.row.capabilities else 600
    await registered(spell, "q", capacity=50)
    pad = "x" * 700
    events = [Event("a", {"n": n, "pad": pad}) for n in range(total)]
    publishing: list[Coroutine[Any, Any, object]] = []
    for start in range(0, total, 300):
        publishing.append(spell.events.publish_many(events[start : start + 200]))
        publishing += [spell.events.publish_event(one) for one in events[start + 200 : start + 300]]
    async with spell.events.subscribe(durable="q") as sub, asyncio.TaskGroup() as work:
        for one in publishing:
            work.create_task(one)
        assert [data["n"] for data in await data_of(sub, total)] == list(range(total))
    assert spell.events.stats().published == total
    assert spell.events.stats().waits


async def test_what_waits_for_one_queue_is_not_passed_in_another(spell: Spell) -> None:
    """Of one call and of later ones; what means none of these queues goes on."""
    await registered(spell, "all", "a.*")
    await registered(spell, "small", "a.x", capacity=1)
    await registered(spell, "other", "b")
    await spell.events.publish("a.x", 0)
    many = asyncio.create_task(
        spell.events.publish_many([Event("a.x", 1), Event("a.y", 2), Event("b", "at once")])
    )
    await until(lambda: spell.events.stats().waits > 0)
    later = asyncio.create_task(spell.events.publish("a.y", 3))
    await soon(spell.events.publish("b", "too"))
    async with spell.events.subscribe("b", durable="other") as other:
        assert await data_of(other, 2) == ["at once", "too"]
    async with spell.events.subscribe("a.*", durable="all") as sub:
        assert await data_of(sub, 1) == [0]
        assert not many.done()
        assert not later.done()
        async with spell.events.subscribe("a.x", durable="small") as small:
            assert await data_of(small, 2) == [0, 1]
        await soon(asyncio.gather(many, later))
        assert await data_of(sub, 3) == [1, 2, 3]


async def test_who_gives_up_is_in_nobodys_way(spell: Spell, event_store: EventStore) -> None:
    """After a timeout or a cancellation those behind it go on, and it is not stored."""
    await registered(spell, "all", "a.*")
    await registered(spell, "small", "a.x", capacity=1)
    await spell.events.publish("a.x", 0)
    late = asyncio.create_task(spell.events.publish("a.x", 1, timeout=0.05))
    cancelled = asyncio.create_task(spell.events.publish("a.x", 2))
    behind = asyncio.create_task(spell.events.publish("a.y", 3))
    await until(lambda: spell.events.stats().waits > 0)
    cancelled.cancel()
    with pytest.raises(PublishBlockedError, match="'small' stayed"):
        await soon(late)
    await soon(behind)
    await soon(spell.events.publish("a.y", 4))
    assert (event_store.queue("small"), event_store.queue("all")) == (1, 3)
    async with spell.events.subscribe("a.*", durable="all") as sub:
        assert await data_of(sub, 3) == [0, 3, 4]
    assert spell.events.stats().blocked == 1


async def test_what_comes_after_a_rejected_event_is_stored(
    spell: Spell, event_store: EventStore
) -> None:
    """Events of `publish_many` are no transaction: the error names the first that was refused."""
    await registered(spell, "small", "a", capacity=1, overflow="reject")
    await registered(spell, "other", "b")
    events = [Event("a", 0), Event("a", 1), Event("b", 2), Event("a", 3)]
    with pytest.raises(PublishRejectedError) as caught:
        await spell.events.publish_many(events)
    assert caught.value.event_id == events[1].id
    assert (event_store.queue("small"), event_store.queue("other")) == (1, 1)
    stats = spell.events.stats()
    assert (stats.published, stats.rejected) == (2, 2)


async def test_closing_tells_those_that_wait(url: str, namespace: str) -> None:
    """They are not stored, and nobody waits for ever."""
    async with connect(url, namespace=namespace) as spell:
        await registered(spell, "q", capacity=1)
        await spell.events.publish("a", 0)
        waiting = asyncio.create_task(spell.events.publish("a", 1))
        await until(lambda: spell.events.stats().waits > 0)
    with pytest.raises(ClosedError):
        await soon(waiting)
    async with (
        connect(url, namespace=namespace) as spell,
        spell.events.subscribe(durable="q") as sub,
    ):
        assert [event.data for event in await take(sub, 1)] == [0]
