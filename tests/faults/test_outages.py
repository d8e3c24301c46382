"""Servers that are away, stopped, or come back without their data."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic
from typing import Any

import pytest
from fix_faults import (
    SCOPE,
    Proxies,
    Servers,
    Writers,
    blocking_client,
    client,
    ends,
    hasty,
    outcome,
    raw_to,
    stopped,
)
from fix_servers import Server
from fix_state import Store, until

from llmspell_dist.errors import (
    ClosedError,
    OutcomeUnknownError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.hooks import HookContext
from llmspell_dist.hooks.manager import DRAIN_S
from llmspell_dist.redis.embedded import EmbeddedServer

pytestmark = [pytest.mark.integration, pytest.mark.needs("restart")]

HASTY: dict[str, Any] = {"call_timeout": 0.3, "connect_timeout": 0.3, "retry_budget": 0.6}
PATIENT_S = 8
"""Less than a call takes that is not hasty, however busy the machine is."""


def look(_: HookContext) -> None:
    """Say to go on."""


async def test_a_server_that_is_down_at_the_start_is_named_in_time(
    own_server: Servers, namespace: str
) -> None:
    """Connecting gives up within the budget and says where, and what the system said."""
    server = own_server()
    server.kill()
    started = monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        async with client(server, namespace, **HASTY):
            pass
    assert monotonic() - started < PATIENT_S
    assert caught.value.server == str(server.socket)
    assert caught.value.said == "No such file or directory"
    assert not caught.value.may_have_happened
    with pytest.raises(StoreUnavailableError) as caught:
        blocking_client(server, namespace, **HASTY)
    assert caught.value.server == str(server.socket)
    assert caught.value.said == "No such file or directory"


async def test_a_server_that_comes_back_during_the_start_is_used(
    own_server: Servers, namespace: str
) -> None:
    """A client that is opened before its server is up waits for it."""
    server = own_server()
    server.kill()
    opening = asyncio.ensure_future(_opened(server, namespace))
    await asyncio.to_thread(server.start)
    spell = await opening
    assert await spell.state.increment(SCOPE, "n") == 1
    await spell.close()


async def _opened(server: EmbeddedServer, namespace: str) -> Any:
    return await client(server, namespace)


async def test_a_crash_under_load_loses_nothing_that_was_acknowledged(
    own_server: Servers, namespace: str
) -> None:
    """The server is killed in mid-traffic and comes back from its AOF; all calls end well."""
    server = own_server(fsync="always")
    async with client(server, namespace) as spell:
        raw = raw_to(server)
        writers = Writers(Store(raw, namespace))
        await writers.prepare(spell.state)
        for _ in range(2):
            tasks = writers.burst(spell.state, 1000)
            await asyncio.wait([tasks[200]])
            server.kill()
            await asyncio.to_thread(server.start)
            await ends(tasks)
        raw.close()
        writers.store.raw = raw_to(server)
        counts = await writers.check(spell.state)
        writers.store.raw.close()
    assert counts["acknowledged"] == 2000


async def test_a_server_that_comes_back_empty_is_used_on(
    own_server: Servers, namespace: str
) -> None:
    """Without its data: old values are gone, new ones stand, revisions go on growing.

    A conditional write on what is gone is refused; a new client can join.
    """
    server = own_server(config={"appendonly": "no", "save": ""})
    async with client(server, namespace) as spell:
        state = spell.state
        before = await state.set(SCOPE, "a", 1)
        await state.append(SCOPE, "list", 1, 2)
        with blocking_client(server, namespace) as other:
            other.state.increment(SCOPE, "n")
            server.kill()
            await asyncio.to_thread(server.start)
            assert await state.get(SCOPE, "a") is None
            after = await state.set(SCOPE, "a", 2)
            assert after > before
            refused = await outcome(state.compare_and_set(SCOPE, "a", 3, expected=before))
            assert refused.code == "CONFLICT"
            assert await state.append(SCOPE, "list", 3) == 1
            assert await state.history(SCOPE, "a")
            assert await asyncio.to_thread(other.state.increment, SCOPE, "n") == 1
        async with client(server, namespace) as newcomer:
            assert await newcomer.state.get_many(SCOPE, ["a", "n"]) == {"a": 2, "n": 1}
        raw = raw_to(server)
        store = Store(raw, namespace)
        store.check()
        assert raw("HGET", store.space.ctl("0"), "format") is not None
        raw.close()


async def test_a_commit_whose_server_lost_its_memory_of_it_is_unknown(
    own_server: Servers, fault_proxy: Proxies, namespace: str
) -> None:
    """A retry finds neither its outcome nor the ring that would hold it: it is not made again."""
    server = own_server()
    proxy = fault_proxy(server)
    raw = raw_to(server)
    async with client(proxy, namespace) as spell:
        assert await spell.state.increment(SCOPE, "n") == 1
        proxy.drop_reply(b":log")
        proxy.hold_replies()
        adding = asyncio.ensure_future(outcome(spell.state.increment(SCOPE, "n")))
        store = Store(raw, namespace)
        await until(lambda: len(store.log()) == 2)
        raw("DEL", *raw("KEYS", f"{namespace}:*:ring:*"))
        proxy.clear()
        error = await adding
        assert type(error) is OutcomeUnknownError
        assert error.may_have_happened
        assert await spell.state.get(SCOPE, "n") == 2
        assert await spell.state.increment(SCOPE, "n") == 3
    assert proxy.struck == 1
    raw.close()


@pytest.mark.parametrize("blocks", [False, True], ids=["async", "blocking"])
async def test_requests_that_a_stopped_server_wakes_up_to_are_done_once(
    own_server: Servers, namespace: str, blocks: bool
) -> None:
    """SIGSTOP: given up, sent again over other connections, and then the server reads them all."""
    server = own_server()
    patience = {"call_timeout": 0.25, "connect_timeout": 0.25, "retry_budget": 10.0}
    raw = raw_to(server)
    store = Store(raw, namespace)
    if blocks:
        with blocking_client(server, namespace, **patience) as spell:
            spell.state.increment(SCOPE, "n")
            with stopped(server.pid):
                calls = [asyncio.to_thread(spell.state.increment, SCOPE, "n") for _ in range(4)]
                waiting = asyncio.gather(*calls)
                await asyncio.wait([waiting], timeout=0.8)
            assert sorted(await waiting) == [2, 3, 4, 5]
            idle = spell._connections._idle
            for _ in range(len(idle)):  # with every connection
                assert await asyncio.to_thread(spell.state.get, SCOPE, "n") == 5
                idle.rotate()
    else:
        async with client(server, namespace, **patience) as spell:
            writers = Writers(store)
            await writers.prepare(spell.state)
            await ends(writers.burst(spell.state, 50))
            with stopped(server.pid):
                tasks = writers.burst(spell.state, 500)
                await asyncio.wait(tasks, timeout=0.9)
            await ends(tasks)
            counts = await writers.check(spell.state)
            assert counts["acknowledged"] == 550
    store.check()
    raw.close()


@pytest.mark.slow
async def test_three_seconds_of_silence_end_in_honest_answers(
    own_server: Servers, namespace: str
) -> None:
    """Callers give up while the server is stopped; what it does afterwards fits what they heard."""
    server = own_server()
    raw = raw_to(server)
    async with client(server, namespace, **HASTY) as spell:
        writers = Writers(Store(raw, namespace))
        await writers.prepare(spell.state)
        with stopped(server.pid):
            tasks = writers.burst(spell.state, 500)
            started = monotonic()
            await ends(tasks, within_s=5)
            assert monotonic() - started < 3
            await asyncio.sleep(max(0.0, 3 - (monotonic() - started)))
        await spell.ping()
        await ends(writers.burst(spell.state, 500))
        counts = await writers.check(spell.state)
    assert counts["unknown"] > 0
    raw.close()


async def test_a_request_that_arrives_after_its_retry_is_not_done_again(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store
) -> None:
    """A request held up on its way arrives after another client has settled it."""
    proxy = fault_proxy(server)
    async with client(proxy, namespace) as spell, client(server, namespace) as other:
        assert await spell.state.increment(SCOPE, "n") == 1
        proxy.hold_request(b":log")
        adding = asyncio.ensure_future(outcome(spell.state.increment(SCOPE, "n")))
        await until(lambda: proxy.struck == 1)
        proxy.down(keep=True)
        with hasty(spell, **HASTY):
            error = await adding
        assert type(error) is OutcomeUnknownError
        await other.state.retry(error.operation)
        assert await other.state.get(SCOPE, "n") == 2
        assert proxy.release_requests() == 1
        assert await other.state.get(SCOPE, "n") == 2
        proxy.up()
    assert len({entry.operation for entry in store.log()}) == len(store.log())


async def under_way(kind: str, spell: Any) -> None:
    """Do what leaves something to be said at the end."""
    if kind == "write":
        await spell.state.increment(SCOPE, "n")
    elif kind == "publish":
        await spell.events.publish("a.b", 1)
    elif kind == "durable":
        async with spell.events.subscribe("a.*", durable="q") as subscription:
            async for event in subscription:
                await subscription.ack(event)
    else:
        async with spell.leases.acquire(SCOPE):
            await asyncio.Event().wait()


@pytest.mark.parametrize("kind", ["write", "publish", "durable", "lease"])
async def test_a_silent_server_holds_up_the_end_no_longer_than_the_limit(
    own_server: Servers, namespace: str, kind: str
) -> None:
    """What is in flight fails then, and so does all that would still be said."""
    server = own_server()
    spell = await client(server, namespace)
    await spell.state.set(SCOPE, "n", 1)
    begun = None
    if kind in {"lease", "durable"}:
        begun = asyncio.create_task(under_way(kind, spell))
        await until(lambda: bool(spell.leases._grants or spell.events.consumed()))
    with stopped(server.pid), hasty(spell, close_timeout=0.5):
        asked = begun or asyncio.create_task(under_way(kind, spell))
        await asyncio.sleep(0)
        started = monotonic()
        await spell.close()
        assert monotonic() - started < PATIENT_S
        if kind == "lease":
            asked.cancel()
        await asyncio.wait([asked], timeout=5)
        assert asked.done()
    if begun is None:
        assert isinstance(asked.exception(), StoreUnavailableError | OutcomeUnknownError)


def test_a_silent_server_holds_up_the_end_of_a_blocking_client_no_longer_than_the_limit(
    own_server: Servers, namespace: str
) -> None:
    """Also with a lease to be given back, and a call of another thread under way."""
    server = own_server()
    spell = blocking_client(server, namespace)
    spell.leases.acquire(SCOPE)
    spell.events.publish("a.b", 1)
    told: list[type[BaseException]] = []

    def ask() -> None:
        try:
            spell.events.publish("a.b", 2)
        except (StoreUnavailableError, ClosedError) as error:
            told.append(type(error))

    asking = threading.Thread(target=ask)
    with stopped(server.pid), hasty(spell, close_timeout=0.5):
        asking.start()
        started = monotonic()
        spell.close()
        assert monotonic() - started < PATIENT_S
        asking.join(5)
        assert told
    with pytest.raises(ClosedError):
        spell.state.get(SCOPE, "n")


async def test_hooks_and_their_history_have_no_limits_of_their_own_when_a_client_closes(
    own_server: Servers, namespace: str
) -> None:
    """One that is queued and never ends, and a history that nobody takes, share the client's."""
    server = own_server()
    spell = await client(server, namespace)

    async def endless(_: HookContext) -> None:
        await asyncio.Event().wait()

    spell.hooks.register("job:done", endless, queued=True, timeout=60)
    spell.hooks.register("job:done", look, replayable=True)
    with stopped(server.pid), hasty(spell, close_timeout=0.5):
        await spell.hooks.run("job:done", "job")
        started = monotonic()
        await spell.close()
        assert monotonic() - started < DRAIN_S
    assert (spell.hooks._queue.lost, spell.hooks.history.stats.lost) == (1, 1)


def test_hooks_and_their_history_have_no_limits_of_their_own_when_a_blocking_client_closes(
    own_server: Servers, namespace: str
) -> None:
    """As with an event loop; a hook in a thread is left alone."""
    server = own_server()
    spell = blocking_client(server, namespace)
    ended = threading.Event()

    def endless(_: HookContext) -> None:
        ended.wait()

    spell.hooks.register("job:done", endless, queued=True)
    spell.hooks.register("job:done", look, replayable=True)
    with stopped(server.pid), hasty(spell, close_timeout=0.5):
        spell.hooks.run("job:done", "job")
        started = monotonic()
        spell.close()
        assert monotonic() - started < DRAIN_S
    ended.set()
    assert (spell.hooks._queue.lost, spell.hooks.history.stats.lost) == (1, 1)


async def test_a_hook_that_never_ends_keeps_nothing_else_from_being_said_at_the_end(
    own_server: Servers, namespace: str
) -> None:
    """With a server that answers, the history is whole and the lease is given back."""
    server = own_server()
    spell = await client(server, namespace)

    async def endless(_: HookContext) -> None:
        await asyncio.Event().wait()

    spell.hooks.register("SystemShutdown", endless, timeout=60)
    spell.hooks.register("job:done", endless, queued=True, timeout=60)
    spell.hooks.register("job:done", look, replayable=True)
    with hasty(spell, close_timeout=0.5):
        await spell.leases.acquire(SCOPE)
        await spell.hooks.run("job:done", "job")
        await spell.close()
    assert spell.hooks.history.stats.lost == 0
    async with client(server, namespace) as other:
        assert await other.hooks.history.count() == 1
        async with other.leases.acquire(SCOPE, wait=0):
            pass


async def test_calls_are_given_up_within_their_budget(own_server: Servers, namespace: str) -> None:
    """With a silent server every call ends, reads as timed out and writes as unknown."""
    server = own_server()
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        blocks = await asyncio.to_thread(blocking_client, server, namespace)
        with stopped(server.pid), hasty(spell, **HASTY), hasty(blocks, **HASTY):
            started = monotonic()
            reading = asyncio.ensure_future(outcome(spell.state.get(SCOPE, "a")))
            writing = asyncio.ensure_future(outcome(spell.state.set(SCOPE, "a", 2)))
            in_thread = asyncio.to_thread(blocks.state.set, SCOPE, "a", 3)
            errors = await asyncio.gather(reading, writing, outcome(in_thread))
            assert monotonic() - started < PATIENT_S
        assert [type(error) for error in errors] == [
            StoreTimeoutError,
            OutcomeUnknownError,
            OutcomeUnknownError,
        ]
        for error in errors:
            assert error.server == str(server.socket)
            assert "within" in error.said
        assert errors[0].retryable
        assert errors[2].operation is not None
        assert await spell.state.get(SCOPE, "a") in {1, 2, 3}
        await asyncio.to_thread(blocks.close)
