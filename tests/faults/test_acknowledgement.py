"""Acknowledgement levels: reached, or said not to be, and asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fix_faults import SCOPE, Servers, blocking_client, client, outcome, raw_to, wait_for_acks
from fix_state import until

from llmspell_dist import StateClass
from llmspell_dist.ack import LOCAL_FSYNC, MEMORY, REPLICATED_ALL, replicated
from llmspell_dist.errors import AckNotReachedError

pytestmark = [pytest.mark.integration, pytest.mark.needs("replicas")]


async def test_a_level_that_nobody_gives_is_not_reached(
    own_server: Servers, namespace: str
) -> None:
    """Without replicas: the write is there, the error says what was reached, and knows its id."""
    server = own_server()
    async with client(server, namespace) as spell:
        with blocking_client(server, namespace) as blocks:
            wait_for_acks(0.1, spell, blocks)
            levels = (replicated(1), REPLICATED_ALL)
            calls = [spell.state.increment(SCOPE, "n", ack=level) for level in levels]
            calls += [
                asyncio.to_thread(blocks.state.increment, SCOPE, "n", ack=level) for level in levels
            ]
            errors = await asyncio.gather(*[outcome(call) for call in calls])
            for error, level in zip(errors, levels * 2, strict=True):
                assert type(error) is AckNotReachedError, repr(error)
                assert error.level == level
                assert error.may_have_happened
                assert error.operation is not None
                assert error.operation.ack == level
            assert await spell.state.get(SCOPE, "n") == 4


async def test_a_disk_that_is_not_written_to_is_not_claimed(
    own_server: Servers, namespace: str
) -> None:
    """local-fsync without an AOF, or on a server without WAITAOF: said, not promised."""
    server = own_server(config={"appendonly": "no"})
    async with client(server, namespace) as spell:
        error = await outcome(spell.state.set(SCOPE, "a", 1, ack=LOCAL_FSYNC))
        assert type(error) is AckNotReachedError
        assert await spell.state.get(SCOPE, "a") == 1
        assert await spell.state.set(SCOPE, "b", 1, state_class=StateClass.CRITICAL)
        assert spell.state._driver.core.durable_ack == MEMORY


@pytest.mark.needs("waitaof")
async def test_the_disk_is_reached_and_critical_asks_for_it(
    own_server: Servers, namespace: str
) -> None:
    """With an AOF the class Critical waits for the disk without being told to."""
    server = own_server()
    async with client(server, namespace) as spell:
        assert spell.state._driver.core.durable_ack == LOCAL_FSYNC
        wait_for_acks(10, spell)
        await spell.state.set(SCOPE, "a", 1, ack=LOCAL_FSYNC)
        await spell.state.set(SCOPE, "b", 1, state_class=StateClass.CRITICAL)
        with blocking_client(server, namespace) as blocks:
            wait_for_acks(10, blocks)
            blocks.state.set(SCOPE, "c", 1, state_class=StateClass.CRITICAL)
        raw = raw_to(server)
        assert b"cmdstat_waitaof:calls=3" in raw("INFO", "commandstats")
        raw.close()


async def test_a_replica_is_reached_and_critical_asks_for_all(
    own_server: Servers, namespace: str, free_port: Callable[[], int]
) -> None:
    """With a replica: one reached, two not; Critical waits for it; its loss is noticed."""
    port = free_port()
    primary = own_server(port=port, config={"repl-diskless-sync-delay": 0})
    replica = own_server()
    raw, other = raw_to(primary), raw_to(replica)
    other("REPLICAOF", "127.0.0.1", port)
    await until(lambda: b"state=online" in raw("INFO", "replication"), within_s=20)
    async with client(primary, namespace) as spell:
        state = spell.state
        assert state._driver.core.durable_ack == REPLICATED_ALL
        wait_for_acks(10, spell)
        await state.set(SCOPE, "a", 1, ack=replicated(1))
        await state.set(SCOPE, "b", 2, state_class=StateClass.CRITICAL)
        hash_key = state._driver.core.scope_key(SCOPE).hash
        assert other("HEXISTS", hash_key, "b") == 1
        wait_for_acks(0.1, spell)
        error = await outcome(state.set(SCOPE, "c", 3, ack=replicated(2)))
        assert type(error) is AckNotReachedError
        assert "1 replicas" in str(error)
        with blocking_client(primary, namespace) as blocks:
            wait_for_acks(10, blocks)
            blocks.state.set(SCOPE, "d", 4, ack=replicated(1))
        other("REPLICAOF", "NO", "ONE")
        error = await outcome(state.set(SCOPE, "b", 5, state_class=StateClass.CRITICAL))
        assert type(error) is AckNotReachedError
        assert await state.get(SCOPE, "b") == 5
        operation: Any = error.operation
        other("REPLICAOF", "127.0.0.1", port)
        await until(lambda: b"state=online" in raw("INFO", "replication"), within_s=20)
        wait_for_acks(10, spell)
        revision = await state.retry(operation)
        assert (await state.get_record(SCOPE, "b")).revision == revision
        assert other("HEXISTS", hash_key, "b") == 1
    raw.close()
    other.close()


async def test_a_level_that_is_asked_for_again_in_vain_is_said_again(
    own_server: Servers, namespace: str
) -> None:
    """Settling an unreached level does not turn it into a success."""
    server = own_server()
    async with client(server, namespace) as spell:
        wait_for_acks(0.1, spell)
        error = await outcome(spell.state.set(SCOPE, "a", 1, ack=replicated(1)))
        again = await outcome(spell.state.retry(error.operation))
        assert type(again) is AckNotReachedError
        assert again.operation.id == error.operation.id
