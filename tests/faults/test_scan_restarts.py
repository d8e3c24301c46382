"""Scans of scopes over a restart of the server, whose next process lays its tables out anew."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from fix_faults import Servers, blocking_client, client, raw_to

from llmspell_dist import AgentState
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.embedded import EmbeddedServer
from llmspell_dist.scope import Scope

pytestmark = [pytest.mark.integration, pytest.mark.needs("restart", "persistence")]

SCOPE, TARGET = "agent:scanned", "agent:target"
KEYS = [f"k{number}" for number in range(3000)]
BATCHES = [dict.fromkeys(KEYS[first : first + 1000], 1) for first in (0, 1000, 2000)]
"""What a call takes at most."""


def restart(server: EmbeddedServer) -> None:
    """Replace the server by another process with the same data."""
    server.stop()
    server.start()


class RestartAt:
    """Restarts the server once, before the n-th scan of what is run through it."""

    def __init__(self, server: EmbeddedServer, scan: int) -> None:
        self.server = server
        self.left = scan

    def __call__(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run steps as they are, but for that."""
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as ended:
                return ended.value
            if isinstance(step, ScriptCall) and step.name.startswith("scan"):
                self.left -= 1
                if self.left == 0:
                    restart(self.server)
            reply = yield step


@pytest.mark.parametrize("listed", ["keys", "items"])
async def test_no_key_is_lost_by_an_iterator(
    own_server: Servers, namespace: str, listed: str
) -> None:
    """Keys that were given may come again; each comes at least once."""
    server = own_server(fsync="always")
    async with client(server, namespace) as spell:
        for batch in BATCHES:
            await spell.state.set_many(SCOPE, batch)
        found: set[str] = set()
        count = 0
        async for one in getattr(spell.state, listed)(SCOPE):
            found.add(one if listed == "keys" else one[0])
            count += 1
            if count == 1200:
                restart(server)
    assert found == set(KEYS)


async def test_no_scope_is_lost_by_an_iterator(own_server: Servers, namespace: str) -> None:
    """The sorted set of scopes is scanned, too."""
    server = own_server(fsync="always")
    scopes = {Scope.parse(f"agent:a{number}") for number in range(1500)}
    async with client(server, namespace) as spell:
        for scope in scopes:
            await spell.state.set(scope, "k", 1)
        found: set[Scope] = set()
        count = 0
        async for scope in spell.state.scopes():
            found.add(scope)
            count += 1
            if count == 600:
                restart(server)
    assert found == scopes


async def test_a_page_of_a_stale_cursor_is_the_first(own_server: Servers, namespace: str) -> None:
    """So a caller's own loop over pages loses nothing."""
    server = own_server(fsync="always")
    async with client(server, namespace) as spell:
        for batch in BATCHES:
            await spell.state.set_many(SCOPE, batch)
        second = (await spell.state.keys_page(SCOPE)).cursor
        third = await spell.state.keys_page(SCOPE, cursor=second)
        assert await spell.state.keys_page(SCOPE, cursor=second) == third
        restart(server)
        first = await spell.state.keys_page(SCOPE)
        assert await spell.state.keys_page(SCOPE, cursor=second) == first
        assert first.cursor not in (second, third.cursor)


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("scan", [2, 4, 8])
async def test_a_large_scope_is_copied_whole(
    own_server: Servers, namespace: str, move: bool, scan: int
) -> None:
    """An interrupted pass is repeated, and every key is counted once."""
    server = own_server(fsync="always")
    async with client(server, namespace) as spell:
        state = spell.state
        for batch in BATCHES:
            await state.set_many(SCOPE, batch)
        steps = RestartAt(server, scan)(state._scopes.transfer(SCOPE, TARGET, move))
        assert await state._run(steps) == len(KEYS)
        assert {key async for key in state.keys(TARGET)} == set(KEYS)
        assert await state.count(SCOPE) == (0 if move else len(KEYS))


def test_the_blocking_surface_loses_none_either(own_server: Servers, namespace: str) -> None:
    """Its iterators, and a scope that is moved."""
    server = own_server(fsync="always")
    with blocking_client(server, namespace) as spell:
        state = spell.state
        for batch in BATCHES:
            state.set_many(SCOPE, batch)
        found: set[str] = set()
        for count, key in enumerate(state.keys(SCOPE)):
            found.add(key)
            if count == 1200:
                restart(server)
        assert found == set(KEYS)
        steps = RestartAt(server, 4)(state._scopes.transfer(SCOPE, TARGET, True))
        assert state._run(steps) == len(KEYS)
        assert state.count(SCOPE) == 0
        assert state.count(TARGET) == len(KEYS)


async def test_a_snapshot_begins_again_with_a_reset(own_server: Servers, namespace: str) -> None:
    """Whoever follows it has all that is there, and nothing that the restart lost."""
    server = own_server(fsync="always")
    raw = raw_to(server)
    async with client(server, namespace) as spell:
        state = spell.state
        since = await state.set(SCOPE, "first", 0)
        for batch in BATCHES:
            await state.set_many(SCOPE, batch)
        raw("XTRIM", state._driver.core.keyspace.log("0"), "MAXLEN", 1)
        raw.close()
        async with state.watch(SCOPE, since=since, on_trimmed="snapshot") as watch:
            held: dict[str, Any] = {}
            resets = count = 0
            while set(held) != {"end", "first", *KEYS}:
                async with asyncio.timeout(20):
                    change = await anext(watch)
                if change.op == "reset":
                    resets += 1
                    held.clear()
                    continue
                held[change.key] = change.value
                count += 1
                if count == 700:
                    restart(server)
                    await state.set(SCOPE, "end", 1)
            assert resets == 2
            assert len(held) == len(KEYS) + 2


@pytest.mark.needs("acl")
async def test_without_the_right_to_info_no_key_is_lost(
    own_server: Servers, namespace: str
) -> None:
    """Scripts then know the process by where it lies in memory."""
    server = own_server(fsync="always")

    def bar_info() -> None:
        raw = raw_to(server)
        raw("ACL", "SETUSER", "default", "-info")
        raw.close()

    async with client(server, namespace) as spell:
        bar_info()
        for batch in BATCHES:
            await spell.state.set_many(SCOPE, batch)
        page = await spell.state.keys_page(SCOPE)
        found, pages = set(page.items), 1
        while page.cursor is not None:
            if pages == 3:
                restart(server)
                bar_info()
            page = await spell.state.keys_page(SCOPE, cursor=page.cursor)
            found.update(page.items)
            pages += 1
        assert found == set(KEYS)
        assert 6 <= pages <= 12  # it began again once


async def test_no_agent_and_no_lease_is_lost_by_a_listing(
    own_server: Servers, namespace: str
) -> None:
    """They are found in sorted sets, whose places are another process's too."""
    server = own_server(fsync="always")
    names = [f"a{number}" for number in range(600)]
    async with client(server, namespace) as spell:
        await asyncio.gather(*[spell.agents.save(AgentState.new(name, "t")) for name in names])
        page = await spell.agents.list(limit=150)
        found = {summary.agent_id for summary in page.items}
        restart(server)
        while page.cursor is not None:
            page = await spell.agents.list(limit=150, cursor=page.cursor)
            found |= {summary.agent_id for summary in page.items}
        assert found == set(names)
        held = [await spell.leases.acquire(f"agent:{name}", ttl=60) for name in names]
        restarting = RestartAt(server, 2)
        listing = restarting(spell.leases._views.listing("0", 1000, 0))
        listed = await spell.leases._driver.run(listing)
        assert restarting.left <= 0
        assert {info.scope for info in listed} == {lease.scope.text for lease in held}
