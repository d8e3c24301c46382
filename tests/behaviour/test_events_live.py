"""Live events: who hears what, what a slow subscriber misses, and that all of it is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_events import data_of, soon, take
from fix_state import Raw, until

from llmspell_dist import connect
from llmspell_dist.client import Spell
from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.events import Event, LiveSubscription, SubscriberTooSlowError

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]


async def heard(spell: Spell, subscription: LiveSubscription, count: int) -> None:
    """Wait until so many messages came."""
    await until(lambda: subscription.stats().received >= count)


async def test_a_subscriber_hears_what_its_pattern_means(spell: Spell) -> None:
    """Exact, a prefix, a segment, all; each event as it was published, in order."""
    events = spell.events
    async with (
        events.subscribe("state.agent.changed") as exact,
        events.subscribe("state.*") as below,
        events.subscribe("state.*.changed") as segment,
        events.subscribe() as everything,
    ):
        types = ["state.agent.changed", "state.tool.changed", "state.a.b.changed", "other"]
        published = [await events.publish(one, number) for number, one in enumerate(types)]
        assert await take(everything, 4) == published
        assert await data_of(exact, 1) == [0]
        assert await data_of(below, 3) == [0, 1, 2]
        assert await data_of(segment, 2) == [0, 1]
        for one in (exact, below, segment, everything):
            assert one.take_one() is None


async def test_an_event_comes_with_all_its_fields(spell: Spell) -> None:
    """Every one of them."""
    async with spell.events.subscribe("a.*") as sub:
        sent = await spell.events.publish(
            "a.b",
            {"when": {1, 2}, "raw": b"\xff"},
            source="me",
            target="you",
            tags=["x", "y"],
            priority=-7,
            ttl=60,
            correlation_id="run",
            causation_id="cause",
            traceparent="00-1-2-01",
        )
        (got,) = await take(sub, 1)
        assert got == sent
        assert (got.tags, got.priority, got.ttl) == (("x", "y"), -7, 60.0)


async def test_subscriptions_of_one_client_share_a_channel(
    spell: Spell, raw: Raw, namespace: str
) -> None:
    """The server is asked once, told once that it is over, and the others hear on."""
    events = spell.events
    channel = f"{namespace}:{{0}}:ev:a".encode()
    async with events.subscribe("a") as one:
        async with events.subscribe("a") as two:
            assert raw("PUBSUB", "NUMSUB", channel) == [channel, 1]
            await events.publish("a", 1)
            assert await data_of(one, 1) == await data_of(two, 1) == [1]
            (mine,), (yours,) = await twice(events, one, two)
            assert mine == yours
            assert mine.data is not yours.data
        await events.publish("a", 2)
        assert await data_of(one, 1) == [2]
    await until(lambda: raw("PUBSUB", "NUMSUB", channel) == [channel, 0])


async def twice(events: Any, *subscriptions: Any) -> list[list[Event]]:
    """Publish data that can be changed."""
    await events.publish("a", {"n": [1]})
    return [await take(one, 1) for one in subscriptions]


async def test_a_namespace_is_not_heard_in_another(spell: Spell, url: str, namespace: str) -> None:
    """Not even with characters that mean something to Redis in it."""
    async with (
        connect(url, namespace=f"{namespace}*[a]?") as odd,
        odd.events.subscribe("a.*") as sub,
    ):
        await spell.events.publish("a.b", "theirs")
        await odd.events.publish("a.b", "ours")
        assert await data_of(sub, 1) == ["ours"]


@pytest.mark.library_only("it looks at the connection to Redis")
async def test_unsubscribed_types_cost_a_subscriber_nothing(spell: Spell) -> None:
    """What nobody of this client wants is not sent to it."""
    async with spell.events.subscribe("a.b") as sub:
        before = spell._hub._wire.pushes  # type: ignore[union-attr]
        await spell.events.publish_many(Event("c.d", number) for number in range(100))
        await spell.events.publish("a.b", 1)
        await take(sub, 1)
        assert spell._hub._wire.pushes == before + 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("overflow", "kept"), [("drop_oldest", list(range(5, 10))), ("drop_newest", list(range(5)))]
)
async def test_a_full_buffer_drops_and_counts(spell: Spell, overflow: str, kept: list[int]) -> None:
    """The oldest or the newest; the counters add up."""
    async with spell.events.subscribe("a", buffer=5, overflow=overflow) as sub:
        await spell.events.publish_many(Event("a", number) for number in range(10))
        await heard(spell, sub, 10)
        assert sub.stats().waiting == 5
        assert await data_of(sub, 5) == kept
        stats = sub.stats()
        assert (stats.received, stats.delivered, stats.dropped, stats.waiting) == (10, 5, 5, 0)


async def test_reject_ends_a_slow_subscription_with_an_error(spell: Spell) -> None:
    """After what is in the buffer; the error says what happened."""
    async with spell.events.subscribe("a", buffer=3, overflow="reject") as sub:
        await spell.events.publish_many(Event("a", number) for number in range(5))
        await heard(spell, sub, 4)
        assert await data_of(sub, 3) == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(SubscriberTooSlowError, match="too slow: 3 events waited"):
                await soon(anext(sub))


async def test_a_live_subscription_cannot_block(spell: Spell) -> None:
    """And says what can."""
    with pytest.raises(InvalidArgumentError, match="use durable="):
        spell.events.subscribe("a", overflow="block")


async def test_pressure_is_told_when_it_starts_and_when_it_is_relieved(spell: Spell) -> None:
    """Once each time, not with every event; what the callback raises harms nobody."""
    told: list[str] = []

    def on_pressure(sub: LiveSubscription, what: str) -> None:
        told.append(what)
        raise ValueError("the program's own fault")

    async with spell.events.subscribe("a", buffer=10, on_pressure=on_pressure) as sub:
        for _ in range(2):
            await spell.events.publish_many(Event("a", number) for number in range(10))
            await until(lambda: sub.stats().waiting == 10)
            await take(sub, 10)
        assert told == ["started", "relieved"] * 2
        assert (sub.stats().started, sub.stats().relieved) == (2, 2)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_it_works_for_days(spell: Spell, overflow: str) -> None:
    """Counters never stop it: after 12,000 events through a buffer of 100 it is as at the start."""
    total = 12_000
    async with spell.events.subscribe("a.*", buffer=100, overflow=overflow) as sub:
        for start in range(0, total, 400):
            await spell.events.publish_many(Event("a.b", n) for n in range(start, start + 400))
            await until(lambda: sub.stats().received == start + 400)  # noqa: B023 - asked here
            while sub.take_one() is not None:
                pass
        stats = sub.stats()
        assert (stats.received, stats.waiting) == (total, 0)
        assert stats.delivered == total // 400 * 100
        assert stats.dropped == total - stats.delivered
        await spell.events.publish("a.b", "after")
        assert await data_of(sub, 1) == ["after"]
    assert spell.events.stats().published == total + 1


@pytest.mark.library_only("the sidecar leaves them out")
async def test_expired_and_unreadable_events_are_left_out_and_counted(
    spell: Spell, raw: Raw, namespace: str
) -> None:
    """The subscription goes on."""
    async with spell.events.subscribe("a") as sub:
        await spell.events.publish("a", "late", ttl=0.001)
        await asyncio.sleep(0.002)
        raw("PUBLISH", f"{namespace}:{{0}}:ev:a", b"\x63 not ours")
        await spell.events.publish("a", "good")
        await heard(spell, sub, 3)
        assert await data_of(sub, 1) == ["good"]
        stats = sub.stats()
        assert (stats.expired, stats.unreadable, stats.delivered) == (1, 1, 1)


async def test_several_tasks_share_a_subscription(spell: Spell) -> None:
    """Each event goes to one of them; one that is cancelled takes none along."""
    async with spell.events.subscribe("a") as sub:
        tasks = [asyncio.create_task(anext(sub)) for _ in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        await spell.events.publish_many(Event("a", number) for number in range(3))
        assert sorted(e.data for e in await soon(asyncio.gather(*tasks[1:]))) == [0, 1, 2]


async def test_the_end_stops_the_iteration(spell: Spell) -> None:
    """What came before can still be taken; who waits is let go."""
    sub = spell.events.subscribe("a")
    with pytest.raises(ClosedError, match="has not begun"):
        await anext(sub)
    async with sub:
        await spell.events.publish("a", 1)
        await heard(spell, sub, 1)
    assert [event.data async for event in sub] == [1]
    with pytest.raises(ClosedError, match="has begun already"):
        await sub.__aenter__()
    async with spell.events.subscribe("a") as other:
        waiting = asyncio.create_task(anext(other))
        await asyncio.sleep(0)
        await other.close()
        with pytest.raises(StopAsyncIteration):
            await soon(waiting)


async def test_closing_the_client_ends_its_subscriptions(url: str, namespace: str) -> None:
    """Nobody waits for ever, and nothing is published afterwards."""
    async with connect(url, namespace=namespace) as spell:
        sub = await spell.events.subscribe("a").__aenter__()
        waiting = asyncio.create_task(anext(sub))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await soon(waiting)
    with pytest.raises(ClosedError):
        await spell.events.publish("a")


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("pattern", {"pattern": "a.*b"}),
        ("pattern", {"pattern": ""}),
        ("pattern", {"pattern": None}),
        ("overflow", {"overflow": "drop"}),
        ("overflow", {"overflow": 5}),
        ("buffer", {"buffer": 0}),
        ("buffer", {"buffer": "10"}),
        ("high", {"high": -1}),
        ("high", {"buffer": 5, "high": 6}),
        ("low", {"high": 5, "low": 6}),
        ("low", {"low": -1}),
    ],
)
async def test_a_wrong_argument_is_named(
    spell: Spell, argument: str, given: dict[str, Any]
) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError) as caught:
        spell.events.subscribe(**given)
    assert caught.value.argument == argument
