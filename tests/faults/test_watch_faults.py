"""Watches under faults: no gap and no duplicate, or an error that says what is gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fix_faults import Proxies, Servers, blocking_client, client, environment, hasty, quiet, raw_to
from fix_forks import ended_well, in_a_fork
from fix_servers import Server
from fix_state import Store, until
from fix_watch import BEGINNING, logged, nothing_more, take

import llmspell_dist
from llmspell_dist import (
    ClosedError,
    HistoryDivergedError,
    NearCache,
    Revision,
    StateManager,
    StorePermissionError,
    StoreUnavailableError,
    WatchTrimmedError,
)

pytestmark = [pytest.mark.integration, pytest.mark.needs("kill")]

SCOPE = "agent:watched"
HASTY: dict[str, Any] = {"call_timeout": 0.5, "connect_timeout": 0.5, "health_check_interval": 0.2}
"""Soon finds a connection that is dead. It has all the time to find another."""


class Writing:
    """A task that writes numbers to a few keys without a pause, until it is told to stop."""

    def __init__(self, state: StateManager, scope: str = SCOPE) -> None:
        self._state = state
        self._scope = scope
        self.count = 0
        self._stop = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stop:
            await self._state.set(self._scope, f"k{self.count % 7}", self.count)
            self.count += 1
            if self.count % 20 == 0:
                many = {f"m{i}": self.count for i in range(3)}
                await self._state.set_many(self._scope, many)

    async def stop(self) -> None:
        """Write a last change, by which a reader knows the end."""
        self._stop = True
        await self._task
        await self._state.set(self._scope, "end", True)


async def follow(watch: Any, seen: list[tuple[Revision, str, int]]) -> None:
    """Keep what a watch hands out, up to the last change."""
    async for change in watch:
        assert change.op == "set"
        seen.append((change.revision, change.key, 1))
        if change.key == "end":
            return


def longer(seen: list[Any], length: int) -> bool:
    """Whether so much was seen."""
    return len(seen) > length


def cut_off(held: Any) -> bool:
    """Whether a scope of a near cache hears nothing."""
    return not held.hearing


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cuts", [10, pytest.param(100, marks=pytest.mark.slow)])
async def test_every_change_comes_once_however_often_the_connection_is_cut(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store, cuts: int
) -> None:
    """Of the watcher, in the middle of messages too, while another process writes on."""
    proxy = fault_proxy(server)
    async with client(server, namespace) as writer, client(proxy, namespace, **HASTY) as spell:
        seen: list[tuple[Revision, str, int]] = []
        async with spell.state.watch(SCOPE) as watch:
            following = asyncio.create_task(follow(watch, seen))
            writing = Writing(writer.state)
            for number in range(cuts):
                before = len(seen)
                await until(partial(longer, seen, before + 5), within_s=20)
                if number % 3 == 2:
                    proxy.limit_data(100 + 37 * (number % 11))
                else:
                    proxy.reset_peer()
            proxy.clear()
            await writing.stop()
            async with asyncio.timeout(20):
                await following
        assert seen == logged(store, SCOPE)
        assert len(seen) > 5 * cuts


async def test_a_short_gap_is_looked_into(
    server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that nobody heard comes as soon as messages come again, without another one."""
    async with (
        client(server, namespace) as spell,
        spell.state.watch(SCOPE) as watch,
        spell.state.watch(SCOPE) as other,
    ):
        waiting = asyncio.ensure_future(take(watch, 1))
        await until(lambda: watch._waiter is not None)
        watch.lost()
        with monkeypatch.context() as deaf:
            for what in ("told", "missed"):
                deaf.setattr(watch, what, lambda _: None)
            revision = await spell.state.set(SCOPE, "k", 1)
            await take(other, 1)
        watch.resumed()
        assert [change.revision for change in await waiting] == [revision]


async def test_a_server_that_restarts_is_watched_on(own_server: Servers, namespace: str) -> None:
    """With its log kept on disk, each change comes once; from before and after."""
    server = own_server(fsync="always")
    async with client(server, namespace, **HASTY) as spell, spell.state.watch(SCOPE) as watch:
        revisions = [await spell.state.set(SCOPE, "k", number) for number in range(3)]
        assert (await take(watch, 1))[0].value == 0
        for around in range(2):
            server.kill()
            server.start()
            revisions.append(await spell.state.set(SCOPE, "k", 3 + around))
        changes = await take(watch, 4, within_s=20)
        assert [change.value for change in changes] == [1, 2, 3, 4]
        assert [change.revision for change in changes] == revisions[1:]


async def test_a_watch_outlives_an_outage_longer_than_a_call_may_take(
    server: Server, fault_proxy: Proxies, namespace: str
) -> None:
    """Its reader waits, and misses nothing."""
    proxy = fault_proxy(server)
    async with (
        client(server, namespace) as writer,
        client(proxy, namespace, **HASTY) as spell,
        spell.state.watch(SCOPE) as watch,
    ):
        proxy.down()
        for number in range(5):
            await writer.state.set(SCOPE, "k", number)
        waiting = asyncio.ensure_future(take(watch, 5, within_s=30))
        with hasty(spell, retry_budget=1.0), pytest.raises(StoreUnavailableError):
            await spell.ping()  # a whole retry budget
        assert not waiting.done()
        proxy.up()
        assert [change.value for change in await waiting] == [0, 1, 2, 3, 4]


async def test_a_watcher_that_is_killed_goes_on_where_it_was(
    server: Server, namespace: str, store: Store, tmp_path: Path
) -> None:
    """After its last whole line: no change is missing, and none is there twice."""
    file = tmp_path / "seen"
    program = Path(__file__).parent / "watch_process.py"

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(program), server.url, namespace, SCOPE, str(file)]
        return subprocess.Popen(command, env=environment())

    def lines() -> int:
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def more_than(number: int) -> bool:
        return lines() > number

    async with client(server, namespace) as spell:
        written = 0
        for _ in range(3):
            process = start()
            try:
                for _ in range(150):
                    await spell.state.set(SCOPE, f"k{written % 5}", written)
                    written += 1
                seen = lines()
                await until(partial(more_than, seen + 10), within_s=60)
            finally:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        process = start()
        try:
            await until(lambda: lines() >= written, within_s=60)
        finally:
            process.kill()
            process.wait()
    found = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["value"] for line in found] == list(range(written))
    assert [(Revision.parse(line["revision"]), line["key"], 1) for line in found] == logged(
        store, SCOPE
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("behind", [3000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_a_watcher_that_is_far_behind_catches_up(
    server: Server, namespace: str, behind: int
) -> None:
    """In constant memory but for ten bytes an entry, in order."""
    async with client(server, namespace) as spell:
        for first in range(0, behind, 1000):
            await asyncio.gather(
                *[spell.state.set(SCOPE, f"k{n % 10}", n) for n in range(first, first + 1000)]
            )
        values = set()
        last = Revision(0, 0)
        async with spell.state.watch(SCOPE, since=BEGINNING) as watch:
            for _ in range(behind):
                change = await anext(watch)
                assert change.revision > last
                last = change.revision
                values.add(change.value)
                assert len(watch._buffer._entries) <= 256
                assert len(watch._ahead) <= 10 * behind
            assert await nothing_more(watch)
        assert values == set(range(behind))


async def test_a_server_that_lost_its_last_commits_has_diverged(
    own_server: Servers, namespace: str
) -> None:
    """The last revision that both have is named; what was written since is never mixed in."""
    server = own_server()
    raw = raw_to(server)
    async with client(server, namespace, **HASTY) as spell:
        async with spell.state.watch(SCOPE) as watch:
            kept = [await spell.state.set(SCOPE, "k", number) for number in range(5)]
            before = {key: raw("DUMP", key) for key in raw("KEYS", "*")}
            await take(watch, 5)
            lost = [await spell.state.set(SCOPE, "k", number) for number in range(5, 8)]
            await take(watch, 3)
            raw("FLUSHALL")  # as a replica that never had the last three, promoted
            for key, dumped in before.items():
                raw("RESTORE", key, 0, dumped)
            raw("CLIENT", "KILL", "TYPE", "pubsub")
            with pytest.raises(HistoryDivergedError) as raised:
                await take(watch, 1)
            assert raised.value.last_common == kept[-1]
            with pytest.raises(HistoryDivergedError):
                await take(watch, 1)
        async with spell.state.watch(SCOPE, since=kept[-1]) as watch:
            await spell.state.set(SCOPE, "k", "after")
            assert [change.value for change in await take(watch, 1)] == ["after"]
        async with spell.state.watch(SCOPE, since=lost[-1]) as watch:
            with pytest.raises(HistoryDivergedError):
                await take(watch, 1)
    raw.close()


@pytest.mark.needs("replicas")
async def test_a_failover_that_lost_commits_is_told(
    own_server: Servers,
    fault_proxy: Proxies,
    free_port: Callable[[], int],
    namespace: str,
) -> None:
    """A real replica that was cut off before the last commits, promoted in place of its master."""
    port = free_port()
    master = own_server(port=port, config={"repl-diskless-sync-delay": 0})
    replica = own_server()
    proxy = fault_proxy(master)
    raw, link = raw_to(master), raw_to(replica)
    link("REPLICAOF", "127.0.0.1", port)
    await until(lambda: b"state=online" in raw("INFO", "replication"), within_s=20)
    async with client(proxy, namespace, **HASTY) as spell, spell.state.watch(SCOPE) as watch:
        kept = await spell.state.set(SCOPE, "k", "both have it")
        await take(watch, 1)
        await until(lambda: b"both have it" in (link("DUMP", _hash(spell)) or b""))
        link("REPLICAOF", "NO", "ONE")
        await spell.state.set(SCOPE, "k", "only the master has it")
        await take(watch, 1)
        proxy.upstream = str(replica.socket)
        proxy.reset_peer()
        await spell.state.set(SCOPE, "k", "written to the new master")
        with pytest.raises(HistoryDivergedError) as raised:
            await take(watch, 1, within_s=20)
        assert raised.value.last_common == kept
    raw.close()
    link.close()


def _hash(spell: Any) -> bytes:
    found: bytes = spell.state._driver.core.scope_key(SCOPE).hash
    return found


async def test_a_trimmed_log_after_a_cut_is_told(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store
) -> None:
    """What happened meanwhile is gone, and the watch says so instead of going on."""
    proxy = fault_proxy(server)
    async with (
        client(server, namespace) as writer,
        client(proxy, namespace, **HASTY) as spell,
        spell.state.watch(SCOPE) as watch,
    ):
        await writer.state.set(SCOPE, "k", 0)
        await take(watch, 1)
        proxy.down()
        for number in range(5):
            await writer.state.set(SCOPE, "k", number)
        store.raw("XTRIM", store.space.log("0"), "MAXLEN", 2)
        proxy.up()
        with pytest.raises(WatchTrimmedError):
            await take(watch, 1)


@pytest.mark.parametrize("surface", ["async", "blocking"])
async def test_a_wait_for_a_value_goes_on_past_what_was_trimmed_after_a_cut(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store, surface: str
) -> None:
    """It wants a value, not each change: the one that is there by then is asked about."""
    proxy = fault_proxy(server)
    asked: list[Any] = []

    def wanted(value: Any) -> bool:
        asked.append(value)
        return bool(value == "done")

    async def wait() -> Any:
        if surface == "async":
            async with client(proxy, namespace, **HASTY) as spell:
                return await spell.state.wait_for(SCOPE, "k", wanted, timeout=60)

        def in_a_thread() -> Any:
            with blocking_client(proxy, namespace, **HASTY) as spell:
                return spell.state.wait_for(SCOPE, "k", wanted, timeout=60)

        return await asyncio.to_thread(in_a_thread)

    async with client(server, namespace) as writer:
        waiting = asyncio.create_task(wait())
        await writer.state.set(SCOPE, "k", 0)
        await until(lambda: 0 in asked)
        proxy.down()
        for number in range(1, 5):
            await writer.state.set(SCOPE, "k", number)
        await writer.state.set(SCOPE, "other", 1)
        store.raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
        proxy.up()
        await until(lambda: 4 in asked)
        await writer.state.set(SCOPE, "k", "done")
        assert await waiting == "done"
    assert 1 not in asked, "nothing was trimmed before it was read"


async def test_a_fork_ends_the_watch_in_the_child_only(server: Server, namespace: str) -> None:
    """The child is told whose it is; the parent watches on."""
    async with client(server, namespace) as spell, spell.state.watch(SCOPE) as watch:

        def step() -> None:
            with pytest.raises(ClosedError, match="the watch belongs to the parent process"):
                watch.__anext__().send(None)

        assert ended_well(in_a_fork(step))
        await spell.state.set(SCOPE, "k", 1)
        assert [change.value for change in await take(watch, 1)] == [1]


# --- the near cache -------------------------------------------------------------------------------


async def test_a_near_cache_stops_serving_when_its_connection_is_lost(
    server: Server, fault_proxy: Proxies, namespace: str
) -> None:
    """At once; and serves again when messages come again."""
    proxy = fault_proxy(server)
    options: dict[str, Any] = {**HASTY, "near_cache": NearCache()}
    async with client(server, namespace) as writer, client(proxy, namespace, **options) as spell:
        near = spell.near_cache
        await near.warm(SCOPE)
        await writer.state.set(SCOPE, "k", 1)
        for around in range(1, 6):
            (held,) = near._by_hash.values()

            async def served(value: int = around) -> bool:
                hits = near.stats().hits
                assert await spell.state.get(SCOPE, "k") in (value - 1, value)
                return bool(near.stats().hits > hits)

            await until(served, within_s=20)
            proxy.down()
            await until(partial(cut_off, held))
            assert near.stats().entries == 0
            proxy.up()
            await writer.state.set(SCOPE, "k", around + 1)

            async def fresh(value: int = around + 1) -> bool:
                return bool(await spell.state.get(SCOPE, "k") == value)

            await until(fresh, within_s=20)


async def test_a_silent_connection_is_trusted_for_a_bounded_time(
    server: Server, fault_proxy: Proxies, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can notice that messages do not come, so the values end by the clock."""
    proxy = fault_proxy(server)
    options: dict[str, Any] = {"near_cache": NearCache(max_staleness=5.0)}
    async with client(server, namespace) as writer, client(proxy, namespace, **options) as spell:
        near = spell.near_cache
        await near.warm(SCOPE)
        await writer.state.set(SCOPE, "k", "old")
        now = [0.0]
        monkeypatch.setattr(near, "_now", lambda: now[0])
        (held,) = near._by_hash.values()
        await until(lambda: held.at is not None and not held.suspect)
        assert await spell.state.get(SCOPE, "k") == "old"
        proxy.hold_replies()
        await writer.state.set(SCOPE, "k", "new")
        now[0] = 4.9
        assert await spell.state.get(SCOPE, "k") == "old"  # the hub has not noticed
        now[0] = 5.1
        reading = asyncio.ensure_future(spell.state.get(SCOPE, "k"))
        await asyncio.sleep(0)
        assert not reading.done()
        proxy.clear()
        assert await reading == "new"


# --- a server that refuses channels ---------------------------------------------------------------


class Rights:
    """A user of a server whose right to channels is given and taken."""

    def __init__(self, server: Any) -> None:
        self.raw = raw_to(server)
        self.raw("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "resetchannels", "&*")

    def take(self) -> None:
        """Take the right away, which cuts those who listen."""
        self.raw("ACL", "SETUSER", "narrow", "resetchannels")

    def give(self) -> None:
        """Give it back."""
        self.raw("ACL", "SETUSER", "narrow", "resetchannels", "&*")


def narrow(server: Any, namespace: str, **options: Any) -> Any:
    """Return what opens a client as the user whose rights change."""
    url = server.url.replace("://", "://narrow:pw@", 1)
    return llmspell_dist.connect(url, options=quiet(namespace, **{**HASTY, **options}))


@pytest.mark.needs("acl")
async def test_a_near_cache_keeps_nothing_while_its_channels_are_refused(
    own_server: Servers, namespace: str
) -> None:
    """Though reads and writes go on; and keeps values again when they are allowed."""
    server = own_server()
    rights = Rights(server)
    async with (
        client(server, namespace) as writer,
        narrow(server, namespace, near_cache=NearCache()) as spell,
    ):
        near = spell.near_cache
        await near.warm(SCOPE)
        (held,) = near._by_hash.values()
        rights.take()
        await until(partial(cut_off, held))
        for number in range(20):
            held.asked_at = float("-inf")  # every read may try to subscribe
            await writer.state.set(SCOPE, "k", number)
            assert await spell.state.get(SCOPE, "k") == number
            assert not held.hearing
        with pytest.raises(StorePermissionError):
            await near.warm(SCOPE)
        rights.give()

        async def kept() -> bool:
            await spell.state.get(SCOPE, "k")
            return bool(near.stats().hits)

        held.asked_at = float("-inf")
        await until(kept, within_s=20)
    rights.raw.close()


@pytest.mark.needs("acl")
async def test_who_warms_a_scope_learns_why_it_is_not_heard(
    own_server: Servers, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a read that tried to subscribe for the same cache gives up in that moment."""
    server = own_server()
    rights = Rights(server)
    rights.take()
    warming: list[asyncio.Future[None]] = []
    async with narrow(server, namespace, near_cache=NearCache()) as spell:
        near = spell.near_cache
        feeds = near._feeds
        settle = feeds._settle

        def settled(feed: Any) -> None:
            settle(feed)
            # Before those who wait for it: so the read learns of it when `warm` has begun.
            feed.settling.add_done_callback(warm)

        def warm(_: Any) -> None:
            if not warming:
                warming.append(asyncio.ensure_future(near.warm(SCOPE)))

        monkeypatch.setattr(feeds, "_settle", settled)
        await spell.state.get(SCOPE, "k")
        await until(lambda: bool(warming))
        with pytest.raises(StorePermissionError):
            await warming[0]
    rights.raw.close()


@pytest.mark.needs("acl")
async def test_a_watch_begins_when_the_present_connection_has_confirmed(
    own_server: Servers, namespace: str
) -> None:
    """Not because another watch of the scope was confirmed on an earlier one."""
    server = own_server()
    rights = Rights(server)
    async with narrow(server, namespace) as spell, spell.state.watch(SCOPE) as first:
        hub = first._watches.feeds._hub
        rights.take()
        await until(lambda: bool(hub._refused))
        with pytest.raises(StorePermissionError):
            await spell.state.watch(SCOPE).start()
        rights.give()
        async with spell.state.watch(SCOPE) as second:
            assert rights.raw("PUBSUB", "NUMSUB", first._scope.hash)[1] == 1
            await spell.state.set(SCOPE, "k", 1)
            for watch in (first, second):
                assert [change.value for change in await take(watch, 1)] == [1]
    rights.raw.close()


@pytest.mark.needs("acl")
async def test_a_watch_whose_channel_is_refused_reads_the_log(
    own_server: Servers, namespace: str
) -> None:
    """Slowly, but it goes on; and again by messages when it is allowed."""
    server = own_server()
    rights = Rights(server)
    async with (
        client(server, namespace) as writer,
        narrow(server, namespace) as spell,
        spell.state.watch(SCOPE) as watch,
    ):
        rights.take()
        hub = watch._watches.feeds._hub
        await until(lambda: bool(hub._refused))
        for number in range(2):
            waiting = asyncio.ensure_future(take(watch, 1))
            await writer.state.set(SCOPE, "k", number)
            assert [change.value for change in await waiting] == [number]
        rights.give()
        await until(lambda: watch._watches.feeds.hears(watch._scope), within_s=20)
        await writer.state.set(SCOPE, "k", 2)
        assert [change.value for change in await take(watch, 1)] == [2]
    rights.raw.close()
