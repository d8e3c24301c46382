"""Servers that refuse: each refusal by its name, in time, with nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import hiredis
import pytest
from fix_faults import (
    SCOPE,
    Servers,
    blocking_client,
    client,
    hasty,
    outcome,
    raw_to,
)
from fix_state import Raw, Store, until

from llmspell_dist.errors import (
    StoreAuthenticationError,
    StoreBusyError,
    StoreFullError,
    StoreLoadingError,
    StoreMisconfiguredError,
    StorePermissionError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from llmspell_dist.redis.embedded import EmbeddedServer
from llmspell_dist.redis.resp import pack

pytestmark = [pytest.mark.integration, pytest.mark.needs("config")]

HASTY: dict[str, Any] = {"retry_budget": 0.4}
PATIENT_S = 8
"""Less than the budget that a client has by itself, however busy the machine is."""


@contextmanager
def wired(server: EmbeddedServer) -> Iterator[Raw]:
    """Give a plain connection."""
    raw = raw_to(server)
    try:
        yield raw
    finally:
        raw.close()


async def refused(
    server: EmbeddedServer, namespace: str, spell: Any, cls: type[StoreUnavailableError], code: str
) -> None:
    """See writes of all kinds refused as `cls` in time, and nothing changed."""
    with wired(server) as raw:
        store = Store(raw, namespace)
        try:
            before: Any = store.dump()
        except hiredis.ReplyError:
            before = None
        started = monotonic()
        state = spell.state
        calls = [
            state.set(SCOPE, "a", 2),
            state.increment(SCOPE, "n"),
            state.append(SCOPE, "list", 1),
            state.merge(SCOPE, "map", {"x": 1}),
            state.set_many(SCOPE, {"a": 3, "b": 4}),
            state.compare_and_set(SCOPE, "new", 1, expected=None),
        ]
        with hasty(spell, **HASTY):
            errors = await asyncio.gather(*[outcome(call) for call in calls])
        assert monotonic() - started < PATIENT_S
        for error in errors:
            assert type(error) is cls, repr(error)
            assert error.server == str(server.socket)
            assert error.said.startswith(code) or f"-{code}" in error.said
            assert not error.may_have_happened
        if before is not None:
            assert store.dump() == before


async def refused_in_a_thread(
    server: EmbeddedServer, namespace: str, cls: type[StoreUnavailableError], spell: Any
) -> None:
    """See the blocking surface say the same."""
    with hasty(spell, **HASTY):
        error = await outcome(asyncio.to_thread(spell.state.increment, SCOPE, "n"))
    assert type(error) is cls, repr(error)
    assert error.server == str(server.socket)
    assert not error.may_have_happened


async def test_a_full_server_refuses_writes_and_takes_deletes(
    own_server: Servers, namespace: str
) -> None:
    """OOM: reads and deletes go on, every other write is refused whole."""
    server = own_server()
    async with client(server, namespace) as spell:
        state = spell.state
        await state.set_many(SCOPE, {"a": 1, "gone": 2, "also": 3})
        await state.append(SCOPE, "list", *range(100))
        with wired(server) as raw, blocking_client(server, namespace) as blocks:
            raw("CONFIG", "SET", "maxmemory", 1)
            await refused(server, namespace, spell, StoreFullError, "OOM")
            await refused_in_a_thread(server, namespace, StoreFullError, blocks)
            assert await state.get(SCOPE, "a") == 1
            mixed = [
                state.set(SCOPE, f"s{i}", i) if i % 2 else state.delete(SCOPE, k)
                for i, k in enumerate(["gone", "", "also", ""])
            ]
            told = await asyncio.gather(*[outcome(call) for call in mixed])
            assert [type(one) for one in told] == [bool, StoreFullError, bool, StoreFullError]
            error = await outcome(_half(state))
            assert type(error) is StoreFullError
            assert await state.get_many(SCOPE, ["a", "gone", "s1", "t"]) == {"a": 1}
            large = await outcome(state.set(SCOPE, "large", b"x" * 2_000_000))
            assert type(large) is StoreFullError
            raw("CONFIG", "SET", "maxmemory", 0)
            assert await state.increment(SCOPE, "n") == 1
            Store(raw, namespace).check()


async def _half(state: Any) -> None:
    async with state.transaction() as tx:
        tx.delete(SCOPE, "a")
        tx.set(SCOPE, "t", 1)


async def test_a_replica_is_read_from_and_not_written_to(
    own_server: Servers, namespace: str
) -> None:
    """READONLY: asked again within the budget, then refused; a promotion is noticed."""
    server = own_server()
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        with wired(server) as raw, blocking_client(server, namespace) as blocks:
            raw("REPLICAOF", "127.0.0.1", 1)
            await refused(server, namespace, spell, StoreReadOnlyError, "READONLY")
            await refused_in_a_thread(server, namespace, StoreReadOnlyError, blocks)
            assert await spell.state.get(SCOPE, "a") == 1
            raw("CONFIG", "SET", "replica-serve-stale-data", "no")
            with hasty(spell, **HASTY):
                for call in (spell.state.get(SCOPE, "a"), spell.state.set(SCOPE, "a", 2)):
                    error = await outcome(call)
                    assert type(error) is StoreUnavailableError
                    assert error.said.startswith("MASTERDOWN")
            raw("REPLICAOF", "NO", "ONE")
            assert await spell.state.increment(SCOPE, "n") == 1


async def test_a_refused_write_says_so_though_time_is_over_before_it_could_be_sent_again(
    own_server: Servers, namespace: str
) -> None:
    """READONLY: a new connection is tried, and does not come about in time."""
    server = own_server()
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        spell._lanes.fast.resolver = Nowhere()
        with wired(server) as raw, hasty(spell, retry_budget=0.4):
            raw("REPLICAOF", "127.0.0.1", 1)
            error = await outcome(spell.state.set(SCOPE, "a", 2))
        assert type(error) is StoreReadOnlyError
        assert error.said.startswith("READONLY")
        assert not error.may_have_happened


class Nowhere:
    """Where the server is, nobody says."""

    label = "nowhere"

    async def resolve(self) -> Any:
        """Take for ever."""
        await asyncio.Event().wait()


@pytest.mark.parametrize("blocks", [False, True], ids=["async", "blocking"])
async def test_writes_wait_for_a_replica_that_is_being_promoted(
    own_server: Servers, namespace: str, blocks: bool
) -> None:
    """READONLY for a moment, as in a failover behind one address: the call succeeds."""
    server = own_server()
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        with wired(server) as raw, blocking_client(server, namespace) as thread:
            raw("REPLICAOF", "127.0.0.1", 1)
            refusals = _errors(raw)
            if blocks:
                writing = asyncio.ensure_future(
                    asyncio.to_thread(thread.state.increment, SCOPE, "n")
                )
            else:
                writing = asyncio.ensure_future(spell.state.increment(SCOPE, "n"))
            await until(lambda: _errors(raw) > refusals)
            raw("REPLICAOF", "NO", "ONE")
            assert await writing == 1


def _errors(raw: Raw) -> int:
    """How many calls of scripts there were."""
    for line in raw("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_evalsha:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


async def test_a_server_that_cannot_save_refuses_writes(
    own_server: Servers, namespace: str
) -> None:
    """MISCONF: refused whole, and taken again once a save has succeeded."""
    server = own_server()
    (server.path / "dump.rdb").mkdir()
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        with wired(server) as raw, blocking_client(server, namespace) as blocks:
            raw("CONFIG", "SET", "save", "3600 1000000")
            raw("BGSAVE")
            await until(lambda: b"rdb_last_bgsave_status:err" in raw("INFO", "persistence"))
            await refused(server, namespace, spell, StoreMisconfiguredError, "MISCONF")
            await refused_in_a_thread(server, namespace, StoreMisconfiguredError, blocks)
            assert await spell.state.get(SCOPE, "a") == 1
            (server.path / "dump.rdb").rmdir()
            raw("BGSAVE")
            await until(lambda: b"rdb_last_bgsave_status:ok" in raw("INFO", "persistence"))
            assert await spell.state.increment(SCOPE, "n") == 1


async def test_a_busy_script_is_waited_for_and_then_named(
    own_server: Servers, namespace: str
) -> None:
    """BUSY: calls wait within their budget, go on when the script ends, else say so."""
    server = own_server(config={"lua-time-limit": 5})
    async with client(server, namespace) as other, client(server, namespace) as spell:
        await asyncio.gather(other.state.set(SCOPE, "a", 1), spell.state.set(SCOPE, "b", 1))
        blocks = await asyncio.to_thread(blocking_client, server, namespace)
        with wired(server) as loop, wired(server) as raw, blocks:
            loop._socket.sendall(pack("EVAL", "while true do end", 0))
            await until(lambda: _says(raw, "BUSY"))
            patient = [asyncio.ensure_future(spell.state.increment(SCOPE, "n")) for _ in range(50)]
            reading = asyncio.ensure_future(spell.state.get(SCOPE, "a"))
            await refused(server, namespace, other, StoreBusyError, "BUSY")
            await refused_in_a_thread(server, namespace, StoreBusyError, blocks)
            raw("SCRIPT", "KILL")
            assert sorted(await asyncio.gather(*patient)) == list(range(1, 51))
            assert await reading == 1
            Store(raw, namespace).check()


def _says(raw: Raw, code: str) -> bool:
    (reply,) = raw.many([("PING",)])
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith(code)


async def test_a_loading_server_is_waited_for_and_then_named(
    own_server: Servers, namespace: str
) -> None:
    """LOADING: calls wait within their budget and go on when the data is there."""
    config = {
        "appendonly": "no",
        "key-load-delay": 8000,
        "loading-process-events-interval-bytes": 1024,
    }
    server = own_server(config=config, start_timeout_s=60)
    async with client(server, namespace) as spell, client(server, namespace) as other:
        with wired(server) as raw:
            # They take 20 s to load, unless the server is told to make haste.
            raw.many([("SET", f"filler{i}", b"x" * 1000) for i in range(2500)])
            await spell.state.set(SCOPE, "a", 1)
            await other.state.set(SCOPE, "b", 1)
            raw("SAVE")
        server.kill()
        starting = asyncio.ensure_future(asyncio.to_thread(server.start))
        await until(server.socket.exists)
        patient = asyncio.ensure_future(spell.state.increment(SCOPE, "n"))
        await until(lambda: other._lanes.fast._wire is not None)
        with hasty(other, **HASTY):
            error = await outcome(other.state.get(SCOPE, "a"))
        assert type(error) is StoreLoadingError, repr(error)
        assert error.said.startswith("LOADING")
        assert not starting.done()
        with wired(server) as raw:
            raw("CONFIG", "SET", "key-load-delay", 0)
        await starting
        assert await patient == 1
        assert await spell.state.get(SCOPE, "a") == 1


@pytest.mark.needs("acl")
async def test_a_wrong_password_is_said_at_once_and_never_shown(
    own_server: Servers, namespace: str
) -> None:
    """WRONGPASS and NOAUTH: no retries, and no password in any message."""
    server = own_server(password="correct horse")

    class At:
        url = f"unix://:battery-staple@{server.socket}?db=0"

    class Bare:
        url = f"unix://{server.socket}?db=0"

    for where in (At, Bare):
        started = monotonic()
        with pytest.raises(StoreAuthenticationError) as caught:
            async with client(where, namespace):
                pass
        with pytest.raises(StoreAuthenticationError) as in_thread:
            blocking_client(where, namespace)
        assert monotonic() - started < PATIENT_S
        for error in (caught.value, in_thread.value):
            assert "battery" not in f"{error!r} {error}"
            assert error.server == str(server.socket)
            assert not error.may_have_happened


@pytest.mark.needs("acl")
async def test_a_password_changed_at_run_time_is_noticed_at_the_next_connection(
    own_server: Servers, namespace: str
) -> None:
    """Calls go on until the connection is lost, and then say that the password is wrong."""
    server = own_server(password="first")
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        with blocking_client(server, namespace) as blocks, wired(server) as raw:
            raw("AUTH", "first")
            raw("CONFIG", "SET", "requirepass", "second")
            assert await spell.state.increment(SCOPE, "n") == 1
            raw("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: spell._lanes.fast.in_flight == 0 and not spell._lanes.fast._wire)
            for _ in range(2):
                error = await outcome(spell.state.increment(SCOPE, "n"))
                assert type(error) is StoreAuthenticationError
                assert "first" not in str(error)
            error = await outcome(asyncio.to_thread(blocks.state.increment, SCOPE, "n"))
            assert type(error) is StoreAuthenticationError
            raw("CONFIG", "SET", "requirepass", "first")
            assert await spell.state.increment(SCOPE, "n") == 2
            assert blocks.state.increment(SCOPE, "n") == 3


def lame(server: EmbeddedServer, raw: Raw, missing: str) -> Any:
    """Return where to connect as a user who lacks one right."""
    raw("ACL", "SETUSER", "lame", "on", ">pw", "~*", "&*", "+@all", f"-{missing}")

    class At:
        url = f"unix://lame:pw@{server.socket}?db=0"

    return At


@pytest.mark.needs("acl")
@pytest.mark.parametrize(
    "missing",
    [
        "evalsha",
        "hset",
        *[pytest.param(name, marks=pytest.mark.slow) for name in ("zadd", "rpush", "sadd")],
        pytest.param("pexpire", marks=pytest.mark.slow),
    ],
)
async def test_a_right_that_commits_need_is_missed_at_the_start(
    own_server: Servers, namespace: str, missing: str
) -> None:
    """NOPERM in the middle of a script would leave half a commit: such a user does not get in."""
    server = own_server()
    with wired(server) as raw:
        async with client(server, namespace) as admin:
            await admin.state.set(SCOPE, "a", 1)
        store = Store(raw, namespace)
        before = store.dump()
        at = lame(server, raw, missing)
        with pytest.raises(StorePermissionError, match=f"(?i){missing}"):
            async with client(at, namespace):
                pass
        with pytest.raises(StorePermissionError, match=f"(?i){missing}"):
            blocking_client(at, namespace)
        assert store.dump() == before


@pytest.mark.needs("acl")
@pytest.mark.parametrize("missing", ["xadd", "publish"])
async def test_a_reader_is_refused_whole_and_a_writer_needs_no_bell(
    own_server: Servers, namespace: str, missing: str
) -> None:
    """Without the right to the log every write is refused by name and changes nothing at all.

    Without the right to publish every write goes through.
    """
    server = own_server()
    with wired(server) as raw:
        async with client(server, namespace) as admin:
            await admin.state.set_many(SCOPE, {"a": 1, "old": 2})
            await admin.state.append(SCOPE, "list", 1)
        store = Store(raw, namespace)
        async with client(lame(server, raw, missing), namespace) as spell:
            state = spell.state
            calls: list[Callable[[], Any]] = [
                lambda: state.set(SCOPE, "a", 5),
                lambda: state.set("agent:another", "b", 1, ttl=100),
                lambda: state.append(SCOPE, "list", 2),
                lambda: state.append(SCOPE, "list2", 1),
                lambda: state.delete(SCOPE, "old"),
            ]
            for call in calls:
                before = store.dump()
                told = await outcome(call())
                if missing == "publish":
                    assert not isinstance(told, BaseException)
                    continue
                assert type(told) is StorePermissionError, repr(told)
                assert not told.may_have_happened
                assert store.dump() == before
            assert await state.get(SCOPE, "a") == (5 if missing == "publish" else 1)
        store.check()


@pytest.mark.needs("config")
async def test_a_server_with_too_many_clients_says_so(own_server: Servers, namespace: str) -> None:
    """maxclients: in the server's words, on both surfaces, and it works once there is room."""
    server = own_server()
    with wired(server) as raw:
        async with client(server, namespace) as spell:
            await spell.state.set(SCOPE, "a", 1)
            raw("CONFIG", "SET", "maxclients", 2)
            with pytest.raises(StoreUnavailableError, match="max number of clients") as caught:
                async with client(server, namespace, **HASTY):
                    pass
            assert caught.value.server == str(server.socket)
            with pytest.raises(StoreUnavailableError, match="max number of clients"):
                blocking_client(server, namespace, **HASTY)
            assert await spell.state.get(SCOPE, "a") == 1
            opening = asyncio.ensure_future(_opened(server, namespace))
            await asyncio.sleep(0.05)
            raw("CONFIG", "SET", "maxclients", 100)
            other = await opening
            assert await other.state.get(SCOPE, "a") == 1
            await other.close()


async def _opened(server: EmbeddedServer, namespace: str) -> Any:
    return await client(server, namespace)
