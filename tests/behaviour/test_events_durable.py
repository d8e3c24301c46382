"""Durable events: at least once, shared, redelivered, dead letters, capacity, and what is left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fix_events import EventStore, data_of, soon, take
from fix_servers import Server
from fix_state import Raw, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmspell_dist import connect, context
from llmspell_dist.client import Spell
from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.events import (
    Event,
    PublishBlockedError,
    PublishRejectedError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
)
from llmspell_dist.events.looking import SubscriptionInfo, _subscriptions
from llmspell_dist.events.wire import unpack_event
from llmspell_dist.patterns import Pattern
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.scripts import Script, load_script, resolve, scripts_folder

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]


async def registered(spell: Spell, name: str, pattern: str = "*", **terms: Any) -> None:
    """Make a durable subscription and leave it."""
    async with spell.events.subscribe(pattern, durable=name, **terms):
        pass


async def numbers(spell: Spell, count: int, event_type: str = "a") -> None:
    """Publish so many events that carry their number."""
    await spell.events.publish_many(Event(event_type, number) for number in range(count))


# --- patterns: two implementations, one meaning ---------------------------------------------------


segment = st.sampled_from(["a", "b", "ab", "a-b", "a:b", "_", "9", "x.y"])
types = st.lists(segment, min_size=1, max_size=4).map(".".join)
patterns = st.lists(segment | st.just("*"), min_size=1, max_size=4).map(".".join)


@pytest.mark.library_only("it runs a script of its own")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cases=st.lists(st.tuples(patterns, types), min_size=1, max_size=30))
async def test_the_server_matches_patterns_as_the_client_does(
    spell: Spell, cases: list[tuple[str, str]]
) -> None:
    """Generated patterns and types: never a difference."""
    source = (
        resolve("lib/event_pattern", scripts_folder())
        + """
      local found = {}
      for i = 1, #ARGV, 2 do
        found[#found + 1] = compiled(ARGV[i])(ARGV[i + 1]) and 1 or 0
      end
      return found"""
    )
    flat = tuple(part.encode() for case in cases for part in case)
    reply = await spell._driver.execute(ScriptCall(Script.from_source("match", source), (), flat))
    assert [bool(one) for one in reply] == [Pattern(p).matches(t) for p, t in cases]


# --- delivery -------------------------------------------------------------------------------------


async def test_events_of_a_name_are_kept_for_it(spell: Spell, event_store: EventStore) -> None:
    """From its first subscription on, whether somebody is there or not, and in order."""
    await spell.events.publish("a", "before")
    await registered(spell, "q", "a.*")
    await numbers(spell, 3, "a.b")
    await spell.events.publish("other", "not for it")
    assert event_store.queue("q") == 3
    async with spell.events.subscribe("a.*", durable="q") as sub:
        assert await data_of(sub, 3) == [0, 1, 2]
        await spell.events.publish("a.c", "now")
        assert await data_of(sub, 1) == ["now"]
        await sub.flush()
        assert event_store.queue("q") == 0
    assert event_store.raw("XINFO", "CONSUMERS", event_store.space.event_queue("0", "q"), "q") == []


async def test_every_subscription_has_its_own_copy(spell: Spell, event_store: EventStore) -> None:
    """One publish fills all queues that mean it, and only those."""
    for name, pattern in (("all", "*"), ("some", "a.*"), ("none", "b.c")):
        await registered(spell, name, pattern)
    await numbers(spell, 2, "a.b")
    assert [event_store.queue(name) for name in ("all", "some", "none")] == [2, 2, 0]


async def test_consumers_of_one_name_share(spell: Spell, url: str, namespace: str) -> None:
    """Each event goes to one of them, and each of them gets some."""
    async with connect(url, namespace=namespace) as other:
        got: Counter[str] = Counter()
        seen: list[int] = []
        stop, both = asyncio.Event(), asyncio.Event()

        def handler(who: str) -> Any:
            async def handle(event: Event) -> None:
                got[who] += 1
                seen.append(event.data)
                if len(got) == 2:
                    both.set()
                await both.wait()  # who is busy does not get everything
                if len(seen) == 2000:
                    stop.set()

            return handle

        await registered(spell, "q")
        consuming = [
            asyncio.create_task(one.events.consume("q", "*", handler(who), stop=stop))
            for who, one in (("one", spell), ("other", other))
        ]
        await numbers(spell, 2000)
        await soon(asyncio.gather(*consuming))
        assert sorted(seen) == list(range(2000))
        assert min(got["one"], got["other"]) > 0


async def test_what_is_not_acknowledged_comes_again(spell: Spell, event_store: EventStore) -> None:
    """To the same name at once; its delivery is counted. What was never handed out is not."""
    await registered(spell, "q")
    await numbers(spell, 3)
    async with spell.events.subscribe(durable="q", consumer="me") as sub:
        (event,) = await take(sub, 1, ack=False)
        assert sub.deliveries(event) == 1
    assert event_store.queue("q") == 3
    async with spell.events.subscribe(durable="q", consumer="me") as sub:
        events = await take(sub, 3, ack=False)
        assert sorted((e.data, sub.deliveries(e)) for e in events) == [(0, 2), (1, 1), (2, 1)]
        assert sub.stats().redelivered == 1


async def test_what_a_consumer_gives_back_others_have_at_once(spell: Spell) -> None:
    """The end of a consumer is heard; nobody waits for `claim_idle`."""
    await registered(spell, "q")
    async with spell.events.subscribe(durable="q", claim_idle=1000) as other:
        async with spell.events.subscribe(durable="q") as sub:
            await numbers(spell, 10)
            await until(lambda: sub.stats().waiting + other.stats().waiting == 10)
        assert sorted(await data_of(other, 10)) == list(range(10))


async def test_a_dead_consumers_events_are_taken_over(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """After `claim_idle`, in which its holder did not renew them; then it is forgotten."""
    await registered(spell, "q")
    await numbers(spell, 3)
    queue = event_store.space.event_queue("0", "q")
    raw("XREADGROUP", "GROUP", "q", "dead", "STREAMS", queue, ">")
    async with spell.events.subscribe(durable="q", claim_idle=0.05) as sub:
        events = await take(sub, 3, ack=False)
        assert [sub.deliveries(event) for event in events] == [2, 2, 2]
        assert sub.stats().claimed == 3


@pytest.mark.library_only("it looks at what the consumer asks")
async def test_a_handler_that_takes_long_keeps_its_event(
    spell: Spell, event_store: EventStore
) -> None:
    """It is renewed while it runs, so that nobody else begins."""
    await registered(spell, "q")
    async with spell.events.subscribe(durable="q", claim_idle=0.15) as slow:
        await spell.events.publish("a", 1)
        (event,) = await take(slow, 1, ack=False)
        async with spell.events.subscribe(durable="q", claim_idle=0.15) as other:
            claims = []
            execute = other._feed._execute

            async def watched(call: Any) -> Any:
                reply = await execute(call)
                if call.name == "event_claim":
                    claims.append(reply)
                return reply

            other._feed._execute = watched
            await until(lambda: len(claims) >= 5)
            assert claims == [[0]] * len(claims)
        await slow.ack(event)
    assert event_store.queue("q") == 0


async def test_failures_come_again_and_end_among_the_dead_letters(
    spell: Spell, event_store: EventStore
) -> None:
    """A handler that raises every time: as often as allowed, then buried with its error."""
    tries: Counter[int] = Counter()
    stop = asyncio.Event()

    def handle(event: Event) -> None:
        tries[event.data] += 1
        if event.data % 3 == 0 and (event.data % 2 == 0 or tries[event.data] < 3):
            raise ValueError(f"no {event.data}")

    consuming = asyncio.create_task(
        spell.events.consume("q", "*", handle, max_deliveries=4, retry_delay=0.001, stop=stop)
    )
    await until(lambda: event_store.idle("q"))
    await numbers(spell, 12)
    await until(lambda: event_store.queue("q") == 0)
    stop.set()
    await soon(consuming)
    expected = dict.fromkeys(range(12), 1) | {0: 4, 6: 4, 3: 3, 9: 3}
    assert tries == expected
    letters = await spell.events.dead_letters("q")
    assert sorted((one.event.data, one.deliveries) for one in letters if one.event) == [
        (0, 4),
        (6, 4),
    ]
    assert {one.reason for one in letters} == {"failed"}
    assert sorted(one.error for one in letters) == ["ValueError: no 0", "ValueError: no 6"]


async def test_dead_letters_are_replayed_or_deleted(spell: Spell, event_store: EventStore) -> None:
    """Replayed they are new events at the end of their queue."""
    async with spell.events.subscribe(durable="q", max_deliveries=1) as sub:
        await numbers(spell, 3)
        for event in await take(sub, 3, ack=False):
            await sub.nack(event, "not today")
        letters = await spell.events.dead_letters("q")
        assert [letter.error for letter in letters] == ["not today"] * 3
        page = await spell.events.dead_letters("q", limit=1, after=letters[0].id)
        assert page == letters[1:2]
        assert await spell.events.replay("q", [letters[1].id]) == 1
        (again,) = await take(sub, 1)
        assert again == letters[1].event
        assert await spell.events.replay("q", letters[1].id) == 0
        assert await spell.events.delete_dead("q", [letters[0].id, letters[2].id]) == 2
        assert event_store.dead("q") == 0
    with pytest.raises(SubscriptionNotFoundError):
        await spell.events.replay("never", letters[0].id)
    with pytest.raises(InvalidArgumentError, match="ids of dead letters"):
        await spell.events.replay("q", ["x"])


@pytest.mark.library_only("the sidecar buries, and does not count")
@pytest.mark.parametrize("poison", [b"", b"\x63later", b"\x01broken", b"\x01\x91\x01"])
async def test_poison_goes_to_the_dead_letters_and_is_shown(
    spell: Spell, event_store: EventStore, poison: bytes
) -> None:
    """At once and as it was; what comes after it is delivered."""
    async with spell.events.subscribe(durable="q") as sub:
        event_store.poison("q", poison)
        await spell.events.publish("a", "good")
        assert await data_of(sub, 1) == ["good"]
        await until(lambda: event_store.dead("q") == 1)
        (letter,) = await spell.events.dead_letters("q")
        assert (letter.event, letter.raw, letter.reason) == (None, poison, "unreadable")
        assert letter.error
        assert sub.stats().dead == 1


async def test_a_process_that_dies_of_an_event_does_not_do_so_for_ever(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """Deliveries are counted on the server, also when nobody lives to tell of a failure."""
    await registered(spell, "q")
    await spell.events.publish("a", "deadly")
    queue = event_store.space.event_queue("0", "q")
    ((_, ((entry, _),)),) = raw("XREADGROUP", "GROUP", "q", "x", "STREAMS", queue, ">")
    raw("XCLAIM", queue, "q", "x", "0", entry, "RETRYCOUNT", "3", "JUSTID")
    async with spell.events.subscribe(durable="q", max_deliveries=3, claim_idle=0.05):
        await until(lambda: event_store.dead("q") == 1)
    (letter,) = await spell.events.dead_letters("q")
    assert (letter.deliveries, letter.error) == (3, "its consumers died, or did not settle it")


async def test_lower_priorities_come_first_among_those_fetched_together(spell: Spell) -> None:
    """And in the order of arrival among equals."""
    await registered(spell, "q")
    for number, priority in enumerate([5, 0, -5, 0, 5, -5]):
        await spell.events.publish("a", number, priority=priority)
    async with spell.events.subscribe(durable="q") as sub:
        assert await data_of(sub, 6) == [2, 5, 1, 3, 0, 4]


@pytest.mark.library_only("the sidecar takes them out, and does not count")
async def test_expired_events_are_taken_out_and_counted(
    spell: Spell, event_store: EventStore
) -> None:
    """Nobody handles what is over."""
    await registered(spell, "q")
    await spell.events.publish("a", "late", ttl=0.001)
    await spell.events.publish("a", "good")
    await asyncio.sleep(0.002)
    async with spell.events.subscribe(durable="q") as sub:
        assert await data_of(sub, 1) == ["good"]
        await sub.flush()
        assert (sub.stats().expired, event_store.queue("q")) == (1, 0)


async def test_no_more_than_max_unacked_are_held(spell: Spell, event_store: EventStore) -> None:
    """Neither handed out nor fetched; the next ones come when some were settled."""
    async with spell.events.subscribe(durable="q", max_unacked=2) as sub:
        await numbers(spell, 3)
        first, second = await take(sub, 2, ack=False)
        waiting = asyncio.create_task(anext(sub))
        async with spell.events.subscribe(durable="q") as other:
            (third,) = await take(other, 1)
            assert third.data == 2
            await spell.events.publish("a", 3)
            assert await data_of(other, 1) == [3]
        await spell.events.publish("a", 4)
        assert (waiting.done(), event_store.pending("q")) == (False, 2)
        await sub.ack(second)
        assert (await soon(waiting)).data == 4
        with pytest.raises(InvalidArgumentError, match="handed out"):
            await sub.ack(second)
        await sub.nack(first, delay=0)
        assert (await soon(anext(sub))).data == 0


async def test_a_busy_handler_leaves_the_others_what_it_cannot_begin(spell: Spell) -> None:
    """With `max_unacked`, however long it takes."""
    await registered(spell, "q")
    stop, begun, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def slow(event: Event) -> None:
        begun.set()
        await done.wait()

    async def fast(event: Event) -> None:
        seen.append(event.data)

    one = spell.events.consume("q", "*", slow, max_unacked=1, stop=stop)
    consuming = [asyncio.create_task(one)]
    await numbers(spell, 20)
    await soon(begun.wait())
    other = spell.events.consume("q", "*", fast, stop=stop)
    consuming.append(asyncio.create_task(other))
    await until(lambda: len(seen) == 19)
    assert sorted(seen) == list(range(1, 20))
    done.set()
    stop.set()
    await soon(asyncio.gather(*consuming))


@pytest.mark.parametrize("consumer", [None, "me"])
async def test_a_small_max_unacked_takes_over_everything_of_the_dead(
    spell: Spell, event_store: EventStore, raw: Raw, consumer: str | None
) -> None:
    """Others' events and its own from before, one by one; no event twice, none left."""
    await registered(spell, "q")
    await numbers(spell, 30)
    queue = event_store.space.event_queue("0", "q")
    for dead in ("dead", "me"):
        raw("XREADGROUP", "GROUP", "q", dead, "COUNT", 10, "STREAMS", queue, ">")
    async with spell.events.subscribe(
        durable="q", consumer=consumer, claim_idle=0.05, max_unacked=1
    ) as sub:
        assert sorted(await data_of(sub, 30)) == list(range(30))
        await sub.flush()
    assert event_store.queue("q") == 0


# --- capacity -------------------------------------------------------------------------------------


@pytest.mark.library_only("the sidecar waits, and does not count")
async def test_a_full_queue_that_blocks_lets_publishers_wait(
    spell: Spell, event_store: EventStore
) -> None:
    """Until there is room; meanwhile nothing is in any queue. After the timeout it is an error."""
    await registered(spell, "all")
    await registered(spell, "q", capacity=2)
    await numbers(spell, 2)
    with pytest.raises(PublishBlockedError, match="'q' stayed at its capacity") as caught:
        await spell.events.publish("a", "late", timeout=0.02)
    assert caught.value.subscription == "q"
    assert (event_store.queue("q"), event_store.queue("all")) == (2, 2)
    publishing = asyncio.create_task(numbers(spell, 10))
    async with spell.events.subscribe(durable="q") as sub:
        assert await data_of(sub, 12) == [0, 1, *range(10)]
    await soon(publishing)
    stats = spell.events.stats()
    assert (stats.published, stats.blocked) == (12, 1)
    assert stats.waits > 0
    async with spell.events.subscribe(durable="all") as sub:
        assert await data_of(sub, 12) == [0, 1, *range(10)]


async def test_a_full_queue_that_rejects_is_an_error(spell: Spell, event_store: EventStore) -> None:
    """Which names it; the event is in no queue."""
    await registered(spell, "all")
    await registered(spell, "the queue", capacity=1, overflow="reject")
    await numbers(spell, 1)
    with pytest.raises(PublishRejectedError, match="'the queue' is at its capacity"):
        await spell.events.publish("a", 2)
    assert (event_store.queue("all"), spell.events.stats().rejected) == (1, 1)


@pytest.mark.parametrize(
    ("overflow", "kept"), [("drop_oldest", [7, 8, 9]), ("drop_newest", [0, 1, 2])]
)
async def test_a_full_queue_that_drops_counts_on_the_server(
    spell: Spell, event_store: EventStore, overflow: str, kept: list[int]
) -> None:
    """The oldest or the newest; the other queues have all."""
    await registered(spell, "all")
    await registered(spell, "q", capacity=3, overflow=overflow)
    await numbers(spell, 10)
    assert (event_store.queue("all"), event_store.queue("q")) == (10, 3)
    info = {one.name: one for one in await spell.events.subscriptions()}
    assert (info["q"].dropped, info["all"].dropped) == (7, 0)
    async with spell.events.subscribe(durable="q") as sub:
        assert await data_of(sub, 3) == kept


async def _dropped(spell: Spell) -> int:
    (info,) = await spell.events.subscriptions()
    return info.dropped


async def test_what_was_dropped_and_handled_all_the_same_is_not_counted(spell: Spell) -> None:
    """An event that a consumer has counts until it is acknowledged; one that nobody saw stays."""
    await registered(spell, "q", capacity=3, overflow="drop_oldest")
    async with spell.events.subscribe(durable="q", max_deliveries=1) as sub:
        await numbers(spell, 3)
        held = await take(sub, 3, ack=False)
        await numbers(spell, 3)
        assert await _dropped(spell) == 3
        for event in held[:2]:
            await sub.ack(event)
        await sub.nack(held[2], "lost: no dead letter has it")
        await sub.flush()
        assert await _dropped(spell) == 1
        await take(sub, 3)
        await sub.flush()
        assert await _dropped(spell) == 1


@pytest.mark.library_only("those of a sidecar are renewed by it: see test_events_pulled")
async def test_what_is_dropped_while_its_consumer_works_on_it_is_not_lost(spell: Spell) -> None:
    """It stays that consumer's as often as it is renewed, and its acknowledgement counts."""
    await registered(spell, "q", capacity=3, overflow="drop_oldest")
    async with spell.events.subscribe(durable="q") as sub:
        await numbers(spell, 3)
        held = await take(sub, 3, ack=False)
        await numbers(spell, 3)
        assert await _dropped(spell) == 3
        for _ in range(2):
            await sub._feed.renew()
        for event in held:
            await sub.ack(event)
        await sub.flush()
        assert await _dropped(spell) == 0


async def test_all_that_a_lower_capacity_drops_is_counted(
    spell: Spell, event_store: EventStore
) -> None:
    """The first event after that makes room for itself and for the rule."""
    await registered(spell, "q", capacity=50)
    await numbers(spell, 20)
    await registered(spell, "q", capacity=5, overflow="drop_oldest")
    await numbers(spell, 2)
    assert (event_store.queue("q"), await _dropped(spell)) == (5, 17)


async def test_what_was_dropped_while_a_consumer_held_it_harms_nobody(
    spell: Spell, event_store: EventStore
) -> None:
    """It can be acknowledged, failed, buried or claimed."""
    await registered(spell, "q", capacity=2, overflow="drop_oldest")
    async with spell.events.subscribe(durable="q", claim_idle=0.05, max_deliveries=2) as sub:
        await numbers(spell, 2)
        one, two = await take(sub, 2, ack=False)
        await numbers(spell, 2)
        await sub.ack(one)
        await sub.nack(two, delay=0)
        assert await data_of(sub, 2) == [0, 1]
        await sub.flush()
        await until(lambda: event_store.pending("q") == 0)
        assert event_store.queue("q") == 0


@pytest.mark.library_only("it looks at what the publisher waits for")
@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "reject"])
async def test_it_works_for_days(
    spell: Spell, event_store: EventStore, server: Server, overflow: str
) -> None:
    """After 12,000 events through a queue of 50, with a consumer, it is as at the start."""
    total = 12_000 if "process" in server.row.capabilities else 1_200
    got = 0
    stop = asyncio.Event()

    def handle(event: Event) -> None:
        nonlocal got
        got += 1
        if event.data == "last":
            stop.set()

    await registered(spell, "q", capacity=50, overflow=overflow)
    consuming = asyncio.create_task(spell.events.consume("q", "*", handle, stop=stop))
    refused = 0
    for start in range(0, total, 200):
        try:
            await spell.events.publish_many(Event("a", n) for n in range(start, start + 200))
        except PublishRejectedError:
            refused += 1
    await until(lambda: event_store.queue("q") == 0)
    await spell.events.publish("a", "last")
    await soon(consuming)
    info = (await spell.events.subscriptions())[0]
    if overflow == "block":
        assert (got, info.dropped) == (total + 1, 0)
    elif overflow == "reject":
        assert (got, info.dropped) == (spell.events.stats().published, 0)
        assert refused
    else:
        # What the queue drops may have been fetched by then, and is handled all the same.
        assert total + 1 - info.dropped <= got <= total + 1
        assert info.dropped
    assert (info.lag, info.pending) == (0, 0)


# --- names and what is left -----------------------------------------------------------------------


async def test_a_name_has_one_pattern(spell: Spell) -> None:
    """Another one is an error that names both; capacity and overflow can be changed."""
    await registered(spell, "q", "a.*", capacity=5)
    with pytest.raises(SubscriptionExistsError, match=r"has the pattern 'a\.\*', not 'b'"):
        await registered(spell, "q", "b")
    await registered(spell, "q", "a.*", overflow="reject")
    (info,) = await spell.events.subscriptions()
    assert (info.capacity, info.overflow) == (5, "reject")


async def test_removing_ends_consumers_and_leaves_nothing(
    spell: Spell, event_store: EventStore
) -> None:
    """Who listens is told; a second time there is nothing to remove."""
    async with spell.events.subscribe(durable="q") as sub:
        waiting = asyncio.create_task(anext(sub))
        await until(lambda: event_store.idle("q"))
        assert await spell.events.remove("q")
        with pytest.raises(SubscriptionNotFoundError):
            await soon(waiting)
    assert not await spell.events.remove("q")
    assert await spell.events.subscriptions() == []
    await spell.events.publish("a")
    left = event_store.raw("KEYS", f"{event_store.space.namespace}*")
    assert all(b":evring:" in key or key.endswith(b":ctl") for key in left)


async def test_a_lost_queue_is_listed_with_the_others(
    spell: Spell, event_store: EventStore
) -> None:
    """It is empty; the others are told of, and what is published from then on is seen in it."""
    for name in ("q1", "q2"):
        await registered(spell, name)
    await numbers(spell, 2)
    event_store.raw("DEL", event_store.space.event_queue("0", "q1"))
    infos = await spell.events.subscriptions()
    assert [(info.name, info.lag, info.pending) for info in infos] == [("q1", 0, 0), ("q2", 2, 0)]
    await numbers(spell, 1)
    assert [info.lag for info in await spell.events.subscriptions()] == [1, 3]


async def looked_at(
    spell: Spell, between: Callable[[], Awaitable[Any]]
) -> tuple[list[SubscriptionInfo], int]:
    """List the subscriptions, with something happening behind each question; and count those."""
    steps, asked = _subscriptions(spell.events._steps), 0
    reply: Any = None
    while True:
        try:
            request: Any = steps.send(reply)
        except StopIteration as done:
            return done.value, asked
        if isinstance(request, list):
            reply = [await spell._driver.execute(call) for call in request]
        else:
            reply = await spell._driver.execute(request)
        asked += 1
        await between()


@pytest.mark.library_only("it looks at what is asked")
async def test_a_subscription_that_is_removed_meanwhile_breaks_no_list(spell: Spell) -> None:
    """Each is told of as it stood when it was looked at."""
    for name in ("q1", "q2"):
        await registered(spell, name)
    infos, _ = await looked_at(spell, lambda: spell.events.remove("q1"))
    assert [info.name for info in infos][-1] == "q2"
    assert [info.name for info in await spell.events.subscriptions()] == ["q2"]


@pytest.mark.library_only("it looks at what is asked")
async def test_many_subscriptions_are_listed_a_page_at_a_time(
    spell: Spell, event_store: EventStore
) -> None:
    """Each once, and not a question for each."""
    names = sorted(f"q{number}" for number in range(1200))
    registry = event_store.space.events("0")
    for name in names:
        event_store.raw("HSET", registry, name, "1 10 block a")
        event_store.raw(
            "XGROUP", "CREATE", event_store.space.event_queue("0", name), "q", "0", "MKSTREAM"
        )
    infos, asked = await looked_at(spell, lambda: asyncio.sleep(0))
    assert [info.name for info in infos] == names
    assert asked < 10


async def test_a_queue_tells_how_many_hold_its_events(
    spell: Spell, event_store: EventStore, raw: Raw
) -> None:
    """Not who waits for the next one; a dead consumer is counted until others take over."""
    async with spell.events.subscribe(durable="q"), spell.events.subscribe(durable="q"):
        (info,) = await spell.events.subscriptions()
        assert (info.pending, info.holding) == (0, 0)
    await numbers(spell, 3)
    queue = event_store.space.event_queue("0", "q")
    for consumer, count in (("dead", 1), ("other", 2)):
        raw("XREADGROUP", "GROUP", "q", consumer, "COUNT", count, "STREAMS", queue, ">")
    (info,) = await spell.events.subscriptions()
    assert (info.pending, info.holding) == (3, 2)


async def test_names_are_encoded(spell: Spell, event_store: EventStore) -> None:
    """Any text is one, and no two meet."""
    names = ["a b", "a%20b", "ä:{x}*", "*"]
    for name in names:
        await registered(spell, name)
    await numbers(spell, 1)
    infos = await spell.events.subscriptions()
    assert sorted(info.name for info in infos) == sorted(names)
    assert [info.lag for info in infos] == [1] * 4
    for name in names:
        assert await spell.events.remove(name)


async def test_an_event_with_a_correlation_id_is_kept_with_it(
    spell: Spell, event_store: EventStore
) -> None:
    """Whether or not a queue wants it; for a week after the last one."""
    with context(correlation_id="run 1"):
        sent = await spell.events.publish("a", 1)
    await spell.events.publish("a", 2)
    key = event_store.space.correlation("0", "run 1")
    ((_, fields),) = event_store.raw("XRANGE", key, "-", "+")
    assert fields[:2] == [b"k", b"e"]
    assert unpack_event(fields[3], spell._driver.core.values.codec) == sent
    assert 86_400_000 < event_store.raw("PTTL", key) <= 7 * 86_400_000


@pytest.mark.library_only("it sends a script by itself")
async def test_a_publish_that_is_sent_twice_is_stored_once(
    spell: Spell, event_store: EventStore
) -> None:
    """The server knows the operation by its number; too late it says that it cannot tell."""
    await registered(spell, "q")
    steps, execute = spell.events._steps, spell._driver.execute
    call = steps.publish_call([steps.packed(Event("a", 1)), steps.packed(Event("a", 2))])
    first = await execute(call)
    assert await execute(call) == first
    assert event_store.queue("q") == 2
    for _ in range(256):
        await execute(steps.publish_call([steps.packed(Event("a", 3))]))
    with pytest.raises(Exception, match="no longer knows"):
        steps.read_published(await execute(call))
    assert event_store.queue("q") == 258


async def test_a_handler_that_cannot_take_an_event_is_refused(spell: Spell) -> None:
    """At once, as hooks are, and not by each event's way to the dead letters."""

    async def takes_none() -> None: ...

    class Wanting:
        def handle(self, event: Event, why: str) -> None: ...

    for handler in (takes_none, lambda: None, lambda *, event: event, Wanting().handle):
        with pytest.raises(InvalidArgumentError, match="handler must take one argument") as caught:
            await spell.events.consume("q", "*", handler)  # type: ignore[arg-type]
        assert caught.value.argument == "handler"
    assert await spell.events.subscriptions() == []


@pytest.mark.parametrize(
    ("argument", "given_"),
    [
        ("durable", {"durable": ""}),
        ("durable", {"durable": "x" * 200}),
        ("durable", {"durable": 5}),
        ("consumer", {"consumer": ""}),
        ("capacity", {"capacity": 0}),
        ("capacity", {"capacity": "many"}),
        ("overflow", {"overflow": "drop"}),
        ("max_deliveries", {"max_deliveries": 0}),
        ("max_unacked", {"max_unacked": 0}),
        ("claim_idle", {"claim_idle": 0}),
        ("claim_idle", {"claim_idle": -1}),
        ("retry_delay", {"retry_delay": -1}),
        ("retry_delay", {"retry_delay": True}),
    ],
)
async def test_a_wrong_argument_is_named(
    spell: Spell, argument: str, given_: dict[str, Any]
) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError) as caught:
        spell.events.subscribe(**({"durable": "q"} | given_))
    assert caught.value.argument == argument
    with pytest.raises(InvalidArgumentError, match="publish_event publishes an Event"):
        await spell.events.publish(Event("a"))  # type: ignore[arg-type]
    for name, value in (("capacity", 5), ("consumer", "me"), ("max_deliveries", 1)):
        with pytest.raises(InvalidArgumentError, match="for durable subscriptions") as caught:
            spell.events.subscribe("a", **{name: value})  # type: ignore[arg-type]
        assert caught.value.argument == name
    live: dict[str, Any] = {"buffer": 5, "high": 3, "low": 1, "on_pressure": print}
    for name, value in live.items():
        with pytest.raises(InvalidArgumentError, match="for live subscriptions") as caught:
            spell.events.subscribe("a", durable="q", **{name: value})
        assert caught.value.argument == name
    for wrong in (spell.events.publish("a", timeout=-1), spell.events.publish_many([5])):  # type: ignore[list-item]
        with pytest.raises(InvalidArgumentError):
            await wrong


async def test_closing_the_client_leaves_the_group(
    url: str, namespace: str, event_store: EventStore
) -> None:
    """Its consumers end as if their blocks did: acknowledgements are sent, the rest given back."""
    async with connect(url, namespace=namespace) as spell:
        sub = await spell.events.subscribe(durable="q").__aenter__()
        await numbers(spell, 5)
        await take(sub, 2)
    with pytest.raises((StopAsyncIteration, ClosedError)):
        await anext(sub)
    assert event_store.queue("q") == 3
    assert load_script("event_release").name == "event_release"


@pytest.mark.library_only("hooks are the sidecar's")
async def test_an_observer_sees_changes_and_failures(spell: Spell) -> None:
    """What hooks are put behind: before, after, and when a handler raised."""
    told: list[Any] = []

    class Observer:
        def watches(self, event_type: str = "") -> bool:  # noqa: ARG002 - the protocol's
            return True

        async def before_emit(self, event: Event) -> Event:
            if event.data == "bad":
                raise ValueError("vetoed")
            return Event(event.type, [event.data])

        async def after_emit(self, event: Event) -> None:
            told.append(("after", event.data))

        async def handler_failed(self, event: Event, name: str, error: Exception) -> None:
            told.append(("failed", event.data, name, str(error)))
            stop.set()

    stop = asyncio.Event()

    def handle(event: Event) -> None:
        raise KeyError("mine")

    spell.events.observer = Observer()
    consuming = asyncio.create_task(spell.events.consume("q", "*", handle, stop=stop))
    await until(lambda: bool(spell.events._bells.consumers))
    with pytest.raises(ValueError, match="vetoed"):
        await spell.events.publish("a", "bad")
    await spell.events.publish("a", 1)
    await soon(consuming)
    # Two connections: which of them is heard of first, nobody promises.
    assert sorted(told) == [("after", [1]), ("failed", [1], "q", "'mine'")]


async def test_no_consumer_begins_in_a_client_that_closes(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks would never end."""
    spell = await connect(url, namespace=namespace)
    heard, going_on = asyncio.Event(), asyncio.Event()
    subscribe = spell._hub.subscribe

    async def late(*given: Any, **more: Any) -> None:
        heard.set()
        await going_on.wait()
        await subscribe(*given, **more)

    monkeypatch.setattr(spell._hub, "subscribe", late)
    subscription = spell.events.subscribe("a.*", durable="q")
    beginning = asyncio.create_task(subscription.__aenter__())
    await heard.wait()
    await spell.events.close()
    going_on.set()
    with pytest.raises(ClosedError, match="the client is closed"):
        await beginning
    assert not spell.events.consumed()
    await spell.close()
