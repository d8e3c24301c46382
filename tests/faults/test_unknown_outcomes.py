"""Outcomes that nobody knows: said so, settled later, and never made twice."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from fix_faults import SCOPE, Proxies, blocking_client, client, environment, hasty, outcome
from fix_servers import Server
from fix_state import Store, until

from llmspell_dist.errors import OperationReusedError, OutcomeUnknownError
from llmspell_dist.redis.ring import WINDOW

pytestmark = [pytest.mark.integration, pytest.mark.needs("kill")]

HASTY: dict[str, Any] = {"call_timeout": 0.3, "connect_timeout": 0.3, "retry_budget": 0.5}

SETTLE = """
import pickle, sys
from llmspell_dist import blocking
url, namespace = sys.argv[1:]
operation = pickle.loads(sys.stdin.buffer.read())
with blocking.connect(url, namespace=namespace) as spell:
    print(spell.state.retry(operation))
"""


async def unknown(spell: Any, proxy: Any, call: Any, *, applied: bool) -> OutcomeUnknownError:
    """Let a call's request leave, and its reply never come."""
    if applied:
        proxy.hold_replies()
    else:
        proxy.hold_request(b":log")
    with hasty(spell, **HASTY):
        waiting = asyncio.ensure_future(outcome(call))
        await until(lambda: spell._lanes.fast.in_flight > 0)
        proxy.down(keep=True)
        error = await waiting
    assert type(error) is OutcomeUnknownError, repr(error)
    assert error.may_have_happened
    assert not error.retryable
    proxy.clear()
    proxy.reset_peer()
    proxy.up()
    return error


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
async def test_an_unknown_outcome_is_settled_once(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store, applied: bool
) -> None:
    """Whether or not it had happened: afterwards it has, once, and settling twice is no harm."""
    proxy = fault_proxy(server)
    async with client(proxy, namespace) as spell:
        state = spell.state
        assert await state.increment(SCOPE, "n") == 1
        error = await unknown(spell, proxy, state.increment(SCOPE, "n"), applied=applied)
        revision = await state.retry(error.operation)
        assert await state.get(SCOPE, "n") == 2
        assert await state.retry(error.operation) == revision
        assert (await state.get_record(SCOPE, "n")).revision == revision
        assert [entry.operation for entry in store.log()].count(error.operation.id) == 1
    store.check()


async def test_another_process_settles_what_this_one_left_open(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store
) -> None:
    """The operation travels as a pickle; both processes get the same revision."""
    proxy = fault_proxy(server)
    async with client(proxy, namespace) as spell:
        assert await spell.state.append(SCOPE, "list", "first") == 1
        error = await unknown(
            spell, proxy, spell.state.append(SCOPE, "list", "second"), applied=True
        )
        copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert type(copied) is OutcomeUnknownError
        assert copied.operation.id == error.operation.id
        run = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", SETTLE, server.url, namespace],
            input=pickle.dumps(copied.operation),
            capture_output=True,
            check=True,
            env=environment(),
        )
        assert run.stdout.decode().strip() == str(await spell.state.retry(error.operation))
        assert await spell.state.get(SCOPE, "list") == ["first", "second"]
    store.check()


async def test_past_its_window_an_outcome_stays_unknown(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store
) -> None:
    """After so many operations of the same client nobody can tell, and nothing is made again."""
    proxy = fault_proxy(server)
    async with client(proxy, namespace) as spell:
        state = spell.state
        await state.increment(SCOPE, "n")
        error = await unknown(spell, proxy, state.increment(SCOPE, "n"), applied=True)
        for start in range(0, WINDOW, 256):
            await asyncio.gather(*[state.set(SCOPE, "x", start + i) for i in range(256)])
        for _ in range(2):
            again = await outcome(state.retry(error.operation))
            assert type(again) is OutcomeUnknownError
            assert again.may_have_happened
        assert await state.get(SCOPE, "n") == 2


async def test_an_operation_is_not_used_for_another_request(
    server: Server, fault_proxy: Proxies, namespace: str
) -> None:
    """An id with other content is refused, and nothing is changed."""
    proxy = fault_proxy(server)
    async with client(proxy, namespace) as spell:
        state = spell.state
        await state.increment(SCOPE, "n")
        first = await unknown(spell, proxy, state.increment(SCOPE, "n"), applied=True)
        await spell.ping()
        second = await unknown(spell, proxy, state.increment(SCOPE, "n", 5), applied=True)
        forged = replace(second.operation, sequence=first.operation.sequence)
        with pytest.raises(OperationReusedError):
            await state.retry(forged)
        assert await state.get(SCOPE, "n") == 7


def test_a_blocking_unknown_outcome_is_settled_once(
    server: Server, fault_proxy: Proxies, namespace: str
) -> None:
    """The same over plain sockets."""
    proxy = fault_proxy(server)
    with blocking_client(proxy, namespace, call_timeout=0.3) as spell:
        assert spell.state.increment(SCOPE, "n") == 1
        proxy.hold_replies()
        with hasty(spell, **HASTY), pytest.raises(OutcomeUnknownError) as caught:
            spell.state.increment(SCOPE, "n")
        proxy.clear()
        proxy.reset_peer()
        revision = spell.state.retry(caught.value.operation)
        assert spell.state.get(SCOPE, "n") == 2
        assert spell.state.retry(caught.value.operation) == revision
        assert spell.state.increment(SCOPE, "n") == 3


async def test_more_writes_than_the_window_holds_survive_a_cut_before_the_first_reply(
    server: Server, fault_proxy: Proxies, namespace: str, store: Store
) -> None:
    """Of 3,000 writes at once no more leave than the server remembers outcomes."""
    proxy = fault_proxy(server)
    async with client(proxy, namespace) as spell:
        state = spell.state
        await state.set(SCOPE, "n", 0)
        proxy.hold_replies()
        calls = [asyncio.ensure_future(state.increment(SCOPE, "n")) for _ in range(3000)]
        logged = 0
        while logged < 1000:
            await asyncio.sleep(0.01)
            logged = store.raw("XLEN", store.space.log("0"))
        await asyncio.sleep(0.05)
        assert store.raw("XLEN", store.space.log("0")) <= 1 + WINDOW
        proxy.reset_peer()
        proxy.clear()
        assert sorted(await asyncio.gather(*calls)) == list(range(1, 3001))
    store.check()
