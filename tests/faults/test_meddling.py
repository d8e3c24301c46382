"""Others meddle with the server under load: scripts, data, log and connections disappear."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fix_faults import SCOPE, Writers, client, ends
from fix_servers import Server
from fix_state import Raw, Store

from llmspell_dist.errors import HistoryUnavailableError

pytestmark = [pytest.mark.integration, pytest.mark.needs("kill")]


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    """A plain connection."""
    raw = Raw(server.address)
    yield raw
    raw.close()


async def test_scripts_that_are_flushed_under_load_are_loaded_again(
    server: Server, namespace: str, store: Store, raw: Raw
) -> None:
    """SCRIPT FLUSH in mid-traffic: no call notices."""
    writers = Writers(store)
    async with client(server, namespace) as spell:
        await writers.prepare(spell.state)
        for _ in range(4):
            tasks = writers.burst(spell.state, 400)
            for _ in range(5):
                raw("SCRIPT", "FLUSH")
                await asyncio.sleep(0)
            await ends(tasks)
        counts = await writers.check(spell.state)
    assert counts["acknowledged"] == 1600
    assert b"NOSCRIPT" in raw("INFO", "errorstats"), "no flush struck: the run is void"


async def test_data_that_is_flushed_under_load_hurts_nobody_after(
    server: Server, namespace: str, store: Store, raw: Raw
) -> None:
    """FLUSHALL in mid-traffic: all calls end well, and what follows is in order."""
    async with client(server, namespace) as spell:
        lost = Writers(store, reads=False)
        for _ in range(4):
            tasks = lost.burst(spell.state, 400)
            await asyncio.wait([tasks[50]])
            raw("FLUSHALL")
            await ends(tasks)
        assert not [told for told in lost.told.values() if isinstance(told, BaseException)]
        raw("FLUSHALL")
        writers = Writers(store)
        await writers.prepare(spell.state)
        await ends(writers.burst(spell.state, 400))
        counts = await writers.check(spell.state)
        assert counts["acknowledged"] == 400


async def test_connections_that_are_killed_again_and_again_are_made_again(
    server: Server, namespace: str, store: Store, raw: Raw
) -> None:
    """CLIENT KILL, twenty times: each write is there once."""
    writers = Writers(store)
    killed = 0
    async with client(server, namespace) as spell:
        await writers.prepare(spell.state)
        for _ in range(20):
            tasks = writers.burst(spell.state, 100)
            await asyncio.wait([tasks[20]])
            killed += raw("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await ends(tasks)
        counts = await writers.check(spell.state)
    assert killed >= 20
    assert counts["acknowledged"] == 2000


async def test_a_log_that_is_trimmed_under_a_reader_ends_where_it_was_cut(
    server: Server, namespace: str, raw: Raw, store: Store
) -> None:
    """History read while the log is cut: a gapless newest part, or a clear word."""
    log = store.space.log("0")
    async with client(server, namespace) as spell:
        state = spell.state
        revisions = [await state.set(SCOPE, "a", 0)]
        for _ in range(6):
            revisions += await asyncio.gather(*[state.set(SCOPE, "a", i) for i in range(100)])
        revisions.sort()
        cuts = 0
        for keep in (500, 350, 120, 30, 5, 0):
            reading = asyncio.ensure_future(state.history(SCOPE, "a", limit=1000))
            await asyncio.sleep(0)
            raw("XTRIM", log, "MAXLEN", "=", keep)
            cuts += 1
            found = [change.revision for change in await reading]
            newest_first = revisions[::-1]
            assert found == newest_first[: len(found)], "there is a gap in the history"
            assert len(found) >= keep
        with pytest.raises(HistoryUnavailableError):
            await state.get_at(SCOPE, "a", revisions[3])
        assert await state.get(SCOPE, "a") is not None
        await state.set(SCOPE, "a", "after")
        assert (await state.history(SCOPE, "a"))[0].value == "after"
    assert cuts == 6


async def test_an_expired_number_begins_anew(server: Server, namespace: str, store: Store) -> None:
    """Nobody has removed it yet, and still no call sees it: not a read, a sum or a condition."""
    async with client(server, namespace) as spell:
        state = spell.state
        await state.set_many(SCOPE, {"n": 41, "value": "old"}, ttl=0.001)
        await state.append(SCOPE, "list", 1, ttl=0.001)
        await asyncio.sleep(0.01)
        assert await state.get_many(SCOPE, ["n", "value", "list"]) == {}
        assert await state.set_if_absent(SCOPE, "value", "new") is not None
        assert await state.increment(SCOPE, "n") == 1
        assert await state.append(SCOPE, "list", 2) == 1
    store.check()


async def test_a_list_that_is_replaced_under_its_reader_is_read_whole(
    server: Server, namespace: str
) -> None:
    """A reader that has the head of a large list gets the elements that belong to it."""
    async with client(server, namespace) as spell, client(server, namespace) as other:
        state = spell.state
        for around in range(3):
            old = [f"{around} {i} {'x' * 200}" for i in range(6000)]
            await state.delete(SCOPE, "list")
            for start in range(0, 6000, 1000):
                await state.append(SCOPE, "list", *old[start : start + 1000])
            steps = state._reads.get_slice(SCOPE, "list", 0, None)
            reply = await spell._lanes.execute(next(steps))
            request = steps.send(reply)
            await other.state.set(SCOPE, "list", ["new"])
            found = None
            while found is None:
                reply = await spell._lanes.execute(request)
                try:
                    request = steps.send(reply)
                except StopIteration as done:
                    found = done.value
            assert found == old
