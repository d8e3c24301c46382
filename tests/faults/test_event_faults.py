"""Events under faults: nothing is lost in durable delivery, and the live kind counts its gaps."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fix_events import EventStore, data_of, soon, take
from fix_faults import Proxies, Servers, client, environment, hasty, raw_to
from fix_servers import Server
from fix_state import until

from llmspell_dist import connect
from llmspell_dist.client import Spell
from llmspell_dist.config import Options
from llmspell_dist.errors import StoreFullError, StorePermissionError, StoreUnavailableError
from llmspell_dist.events import Event

pytestmark = pytest.mark.integration

slow = pytest.mark.slow
Consumers = Callable[..., subprocess.Popen[str]]
PROCESS = Path(__file__).with_name("event_process.py")


@pytest.fixture
def consumers(tmp_path: Path, namespace: str) -> Iterator[Consumers]:
    """A factory of consumers in processes of their own, that write into files."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str, name: str, consumer: str = "") -> subprocess.Popen[str]:
        with (tmp_path / f"{len(started)}.out").open("w") as out:
            command = [sys.executable, str(PROCESS), url, namespace, name, consumer]
            process = subprocess.Popen(command, stdout=out, text=True, env=environment())
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def written(folder: Path) -> list[str]:
    """Every number that a consumer wrote; a line that was cut off by a kill is none."""
    lines: list[str] = []
    for file in folder.glob("*.out"):
        text = file.read_text()
        lines += text[: text.rfind("\n") + 1].splitlines()
    return lines


@pytest.mark.needs("kill")
@pytest.mark.parametrize("consumer", ["me", ""])
async def test_a_consumer_killed_and_started_again_loses_nothing(
    *,
    spell: Spell,
    server: Server,
    consumers: Consumers,
    tmp_path: Path,
    event_store: EventStore,
    consumer: str,
) -> None:
    """Under its own name and under new ones; twice comes only what was not acknowledged."""
    async with spell.events.subscribe(durable="q"):
        pass
    total, kills = 3000, 3
    for around in range(kills):
        process = consumers(server.url, "q", consumer)
        first = around * total // kills
        numbers = range(first, first + total // kills)
        await spell.events.publish_many(Event("a", number) for number in numbers)
        seen = len(written(tmp_path))
        await until(lambda: len(written(tmp_path)) > seen, within_s=20)  # noqa: B023
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process = consumers(server.url, "q", consumer)
    await until(lambda: event_store.queue("q") == 0, within_s=30)
    await spell.events.publish("a", "end")
    await asyncio.to_thread(process.wait, 20)
    handled = written(tmp_path)
    assert {*handled} == {*map(str, range(total)), "end"}
    # Fewer than what a consumer may hold without having acknowledged it, for each kill.
    assert len(handled) - total - 1 <= kills * 1000
    assert event_store.dead("q") == 0


async def test_a_connection_cut_a_hundred_times_loses_nothing(
    server: Server, fault_proxy: Proxies, namespace: str, event_store: EventStore
) -> None:
    """Of publisher and consumer alike; nothing is stored twice, and nobody waits for a claim."""
    proxy = fault_proxy(server)
    dice = Random(4)
    options = Options(namespace=namespace, housekeeping=False)
    url = proxy.url
    got: list[int] = []
    stop = asyncio.Event()

    def handle(event: Event) -> None:
        got.append(event.data)
        if event.data == "end":
            stop.set()

    async with connect(url, options=options) as spell:
        async with spell.events.subscribe(durable="audit"):
            pass
        async with spell.events.subscribe("a") as live:
            consuming = asyncio.create_task(
                spell.events.consume("q", "*", handle, claim_idle=3600, stop=stop)
            )
            await until(lambda: event_store.idle("q"))
            number = 0
            for _ in range(100):
                batch = [Event("a", number + n) for n in range(dice.randrange(1, 40))]
                number += len(batch)
                publishing = asyncio.create_task(spell.events.publish_many(batch))
                for _ in range(dice.randrange(6)):
                    await asyncio.sleep(0)
                proxy.reset_peer()
                await soon(publishing, 30)
            # What was in an answer that was lost comes at once, or, for want of a claim, never.
            missing = await _missing(got, number, within_s=10)
            if missing:
                consuming.cancel()
                await asyncio.wait([consuming])
            assert not missing, f"{len(missing)} of {number} events never came: {missing[:10]}"
            gaps = live.stats().gaps
            received = live.stats().received
        await spell.events.publish("a", "end")
        await soon(consuming)
        assert {*got} == {*range(number), "end"}
        assert event_store.queue("q") == 0
        # What the server stored is what was published: not one event twice.
        assert event_store.queue("audit") == number + 1
        assert gaps >= 3  # cuts that come before the hub is back are one gap
        assert received <= number


async def _missing(got: list[int], number: int, within_s: float) -> list[int]:
    """Wait until all numbers came, and return those that did not."""
    try:
        await until(lambda: len({*got}) == number, within_s=within_s)
    except AssertionError:
        return sorted({*range(number)} - {*got})
    return []


@pytest.mark.needs("restart", "persistence")
async def test_a_restarted_server_has_all_events_still(own_server: Servers, namespace: str) -> None:
    """Those that were acknowledged to the publisher; consumer and bell go on by themselves."""
    server = own_server(fsync="always")
    got: list[Any] = []
    stop = asyncio.Event()

    def handle(event: Event) -> None:
        got.append(event.data)
        if event.data == "end":
            stop.set()

    async with client(server, namespace) as spell:
        consuming = asyncio.create_task(spell.events.consume("q", "*", handle, stop=stop))
        await until(lambda: bool(spell.events._bells.consumers))
        for around in range(3):
            await spell.events.publish_many(Event("a", around * 100 + n) for n in range(100))
            server.kill()
            server.start()
        await spell.events.publish("a", "end")
        await soon(consuming, 30)
        assert {*got} == {*range(300), "end"}


@pytest.mark.needs("acl")
async def test_without_the_right_to_channels_durable_events_go_on(
    own_server: Servers, namespace: str
) -> None:
    """They are looked for now and then; live ones say what is missing, and that is counted."""
    server = own_server()
    raw = raw_to(server)
    raw("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "resetchannels")
    options = Options(namespace=namespace, housekeeping=False)
    async with connect(f"unix://narrow:pw@{server.socket}?db=0", options=options) as spell:
        with pytest.raises(StorePermissionError):
            await spell.events.subscribe("a").__aenter__()
        async with spell.events.subscribe(durable="q") as sub:
            object.__setattr__(sub.terms, "poll", 0.01)
            for number in range(3):
                await spell.events.publish("a", number)
            assert await data_of(sub, 3) == [0, 1, 2]
        assert spell.events.stats().live_refused == 3
    raw.close()


@pytest.mark.needs("config")
async def test_a_full_server_refuses_events_whole_and_lets_them_be_handled(
    own_server: Servers, namespace: str
) -> None:
    """The publisher hears it, nothing is half stored, and consuming makes room."""
    server = own_server()
    raw = raw_to(server)
    store = EventStore(raw, namespace)
    async with client(server, namespace) as spell:
        for name in ("q", "other"):
            async with spell.events.subscribe(durable=name):
                pass
        await spell.events.publish_many(Event("a", n, correlation_id="c") for n in range(10))
        raw("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFullError):
            await spell.events.publish("a", "too much", correlation_id="c")
        assert [store.queue(name) for name in ("q", "other")] == [10, 10]
        assert raw("XLEN", store.space.correlation("0", "c")) == 10
        async with spell.events.subscribe(durable="q") as sub:
            with pytest.raises(StoreFullError):
                await spell.events.publish("a", "too much")
            assert await data_of(sub, 10) == list(range(10))
            await sub.flush()
            assert store.queue("q") == 0
            raw("CONFIG", "SET", "maxmemory", "0")
            await spell.events.publish("a", "again")
            assert await data_of(sub, 1) == ["again"]
    raw.close()


@pytest.mark.needs("config")
async def test_a_full_server_hands_out_what_lies_behind_an_unreadable_event(
    own_server: Servers, namespace: str
) -> None:
    """Which becomes a dead letter when there is room again; handling the others makes it."""
    server = own_server()
    raw = raw_to(server)
    store = EventStore(raw, namespace)
    async with client(server, namespace) as spell:
        async with spell.events.subscribe(durable="q"):
            pass
        store.poison("q", b"\x01broken")
        await spell.events.publish_many(Event("a", number) for number in range(10))
        raw("CONFIG", "SET", "maxmemory", "1")
        async with spell.events.subscribe(durable="q", max_deliveries=1) as sub:
            assert await data_of(sub, 9) == list(range(9))
            (last,) = await take(sub, 1, ack=False)
            await soon(sub.nack(last, "no"))
            await sub.flush()
            assert (store.queue("q"), store.dead("q")) == (2, 0)
            raw("CONFIG", "SET", "maxmemory", "0")
            await until(lambda: store.dead("q") == 2)
            assert store.queue("q") == 0
    raw.close()


async def test_a_consumer_stopped_for_long_loses_its_events_to_another(
    spell: Spell, event_store: EventStore
) -> None:
    """What it had not begun it does not begin any more."""
    async with spell.events.subscribe(durable="q", claim_idle=0.05) as slow:
        for task in slow._tasks:
            task.cancel()  # as if its process stood still
        await spell.events.publish_many(Event("a", number) for number in range(5))
        reply = await spell._driver.execute(
            spell.events._steps.fetch_call("q", slow.consumer.encode(), b"0-0", 10, 10_000)
        )
        slow._feed.take([(reply[i], 1, reply[i + 2]) for i in range(1, 16, 3)])
        (begun,) = await take(slow, 1, ack=False)
        async with spell.events.subscribe(durable="q", claim_idle=0.05) as other:
            await until(lambda: other.stats().claimed == 5)
            await slow._feed.renew()
            assert (slow.stats().waiting, slow.stats().taken_over) == (0, 4)
            assert sorted(await data_of(other, 5)) == [0, 1, 2, 3, 4]
            await slow.ack(begun)
    assert event_store.queue("q") == 0


@pytest.mark.needs("process")
async def test_a_publisher_faster_than_its_subscriber_is_bounded_and_counted(
    spell: Spell, server: Server, namespace: str
) -> None:
    """A live buffer stays as it is; what came and what was dropped is what was published."""
    total = 20_000
    async with (
        connect(server.url, options=Options(namespace=namespace, housekeeping=False)) as other,
        spell.events.subscribe("a", buffer=100) as sub,
    ):
        publishing = asyncio.create_task(
            other.events.publish_many(Event("a", number) for number in range(total))
        )
        taken = 0
        most = 0
        while not publishing.done():
            most = max(most, sub.stats().waiting)
            taken += sub.take_one() is not None
            await asyncio.sleep(0)
        await until(lambda: sub.stats().received == total)
        stats = sub.stats()
        assert most <= 100
        assert stats.delivered == taken
        assert stats.delivered + stats.dropped + stats.waiting == total


async def _too_fast(spell: Spell, server: Server, seconds: float) -> None:
    """Publish as fast as may be, to a slow live and a slow durable subscriber; check the bounds.

    For so long, and on a busy machine until the publisher had to wait.
    """
    capacity, buffer = 2000, 500
    key = spell.events._steps.keys.event_queue("0", "q")
    loop = asyncio.get_running_loop()
    got: list[int] = []
    taken: list[int] = []
    most_queued = most_waiting = most_bytes = 0
    published = 0
    all_published = asyncio.Event()

    def was_too_fast() -> bool:
        waited = spell.events.stats().waits > 0
        return waited and published >= 3 * capacity and most_queued > capacity // 2

    async def publish() -> None:
        nonlocal published
        end, many = loop.time() + seconds, 100 * capacity
        while loop.time() < end or (not was_too_fast() and published < many):
            batch = [Event("a", published + number) for number in range(1000)]
            published += await spell.events.publish_many(batch)
        all_published.set()

    async def consume(queue: Any) -> None:
        async for event in queue:
            got.append(event.data)
            await queue.ack(event)
            await asyncio.sleep(0)  # a turn of the event loop an event: the publisher is faster
            if all_published.is_set() and event.data == published - 1:
                return

    async def look(live: Any) -> None:
        nonlocal most_queued, most_waiting, most_bytes
        while not all_published.is_set():
            event = live.take_one()  # one for each look at the server
            if event is not None:
                taken.append(event.data)
            most_waiting = max(most_waiting, live.stats().waiting)
            most_queued = max(most_queued, await asyncio.to_thread(server.call, "XLEN", key))
            used = await asyncio.to_thread(server.call, "MEMORY", "USAGE", key, "SAMPLES", "0")
            most_bytes = max(most_bytes, used or 0)

    async with (
        spell.events.subscribe("a", durable="q", capacity=capacity) as queue,
        spell.events.subscribe("a", buffer=buffer) as live,
    ):
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with asyncio.TaskGroup() as work:
            for task in (publish(), consume(queue), look(live)):
                work.create_task(task)
        await queue.flush()
        await until(lambda: live.stats().received == published)
        stats = live.stats()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    # The durable one has all, once and in order; the publisher waited for it.
    assert got == list(range(published))
    assert spell.events.stats().waits > 0
    assert spell.events.stats().published == published
    # The live one has what it took, and counts the rest.
    assert stats.gaps == 0
    assert stats.dropped > 0
    assert stats.delivered == len(taken) == len({*taken})
    assert stats.delivered + stats.dropped + stats.waiting == published
    # And none of the three grew: the consumers' process, the buffer, the server.
    assert most_waiting <= buffer
    assert capacity // 2 < most_queued <= capacity
    assert most_bytes < capacity * 1000
    assert grown < 30 * 1024 + len(got) // 20  # what the test itself keeps
    assert server.call("XLEN", key) == 0


@pytest.mark.needs("memory-usage")
async def test_a_publisher_faster_than_both_kinds_of_subscribers(
    spell: Spell, server: Server
) -> None:
    """Nobody's memory grows, the durable one loses nothing, the live one counts what it lost."""
    await _too_fast(spell, server, 0.5)


@slow
@pytest.mark.timeout(300)
@pytest.mark.needs("memory-usage")
async def test_a_publisher_faster_than_its_subscribers_for_a_minute(
    spell: Spell, server: Server
) -> None:
    """The same for a minute."""
    await _too_fast(spell, server, 60)


async def _far_behind(spell: Spell, server: Server, total: int) -> tuple[int, int, int]:
    """Fill a queue, then empty it: the client's growth in KiB, the queue's size full and after."""

    def used() -> int:
        return int(server.call("MEMORY", "USAGE", key, "SAMPLES", "0"))

    key = spell.events._steps.keys.event_queue("0", "q")
    async with spell.events.subscribe(durable="q"):
        pass
    await spell.events.publish_many(Event("a.b", {"step": number}) for number in range(total))
    full = used()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = 0
    async with spell.events.subscribe(durable="q") as sub:
        async for event in sub:
            assert event.data == {"step": got}
            await sub.ack(event)
            got += 1
            if got == total:
                break
        await sub.flush()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    return grown, full, used()


@pytest.mark.needs("memory-usage")
async def test_a_consumer_far_behind_catches_up_in_constant_memory(
    spell: Spell, server: Server, event_store: EventStore
) -> None:
    """In order; afterwards the queue takes no room on the server."""
    grown, full, left = await _far_behind(spell, server, 20_000)
    assert grown < 20 * 1024
    assert full > 1_000_000
    assert left < 10_000
    assert event_store.queue("q") == 0


@slow
@pytest.mark.timeout(900)
@pytest.mark.needs("memory-usage")
async def test_a_consumer_a_million_events_behind(
    spell: Spell, server: Server, event_store: EventStore
) -> None:
    """The same with 1,000,000."""
    grown, full, left = await _far_behind(spell, server, 1_000_000)
    assert grown < 30 * 1024
    assert full > 50_000_000
    assert left < 10_000
    assert event_store.queue("q") == 0


async def test_publishing_to_a_server_that_is_gone_says_so(
    server: Server, fault_proxy: Proxies, namespace: str
) -> None:
    """Within the call's budget; it does not wait for ever."""
    proxy = fault_proxy(server)
    options = Options(namespace=namespace, housekeeping=False)
    url = proxy.url
    async with connect(url, options=options) as spell:
        proxy.down()
        with hasty(spell, retry_budget=0.3), pytest.raises(StoreUnavailableError):
            await soon(spell.events.publish("a"))
        proxy.up()
        await soon(spell.events.publish("a"))
