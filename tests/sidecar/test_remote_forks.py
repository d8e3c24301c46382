"""A client of a sidecar that was opened before a fork: parent and child stay apart."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from fix_forks import ended_well, in_a_fork
from fix_sidecar import Sidecar

from llmspell_dist import ClosedError, LeaseError, Options, connect
from llmspell_dist.errors import StoreUnavailableError, WrongEventLoopError
from llmspell_dist.remote.address import parse_address
from llmspell_dist.remote.credentials import Credentials
from llmspell_dist.remote.sessions import make_session
from llmspell_dist.remote.transport import Transport
from llmspell_dist.sidecar.settings import SidecarSettings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]
S = "agent:alice"


async def in_a_child(work: Any) -> bool:
    """Run a coroutine function in a forked child, in an event loop of its own."""

    async def within() -> None:
        async with asyncio.timeout(20):
            await work()

    pid = in_a_fork(lambda: asyncio.run(within()))
    return await asyncio.to_thread(ended_well, pid)  # this loop serves the child


async def test_parent_and_child_each_write(sidecar: Sidecar) -> None:
    """Neither gets the answer to the other's write, on connections of its own."""
    async with connect(sidecar.url) as spell:
        await spell.state.set(S, "k", 1)

        async def child() -> None:
            assert await spell.state.increment(S, "n") == 1
            assert await spell.state.get(S, "k") == 1
            async with spell.leases.acquire("agent:child") as lease:
                await lease.state.set("agent:child", "k", 1)
            await spell.close()

        assert await in_a_child(child)
        assert await spell.state.increment(S, "n") == 2


async def test_what_the_parent_holds_and_hears_is_not_the_childs(sidecar: Sidecar) -> None:
    """The child is told so, and the parent notices nothing."""
    async with (
        connect(sidecar.url) as spell,
        spell.state.watch(S) as watch,
        spell.events.subscribe("a.*") as live,
        spell.events.subscribe("a.*", durable="queue") as durable,
        spell.leases.acquire(S) as lease,
    ):

        async def child() -> None:
            for heard in (watch, live, durable):
                with pytest.raises(ClosedError, match="parent"):
                    await anext(heard)
            with pytest.raises(LeaseError):
                lease.check()
            await spell.events.publish("a.child")
            async with spell.state.watch("agent:bob") as own:
                await spell.state.set("agent:bob", "k", 1)
                assert (await anext(own)).key == "k"
            await spell.close()

        assert await in_a_child(child)
        await lease.renew()
        await lease.state.set(S, "k", 1)
        async with asyncio.timeout(20):
            assert (await anext(watch)).key == "k"
            assert (await anext(live)).type == "a.child"
            event = await anext(durable)
            await durable.ack(event)


def test_the_event_loop_of_the_parent_is_refused_in_the_child() -> None:
    """It reads from the parent's connections."""
    transport = Transport(
        parse_address("http://127.0.0.1:1"), Options(retry_budget=0.01), Credentials.given(None)
    )
    loop = asyncio.new_event_loop()

    def ask(loop: asyncio.AbstractEventLoop, error: type[Exception]) -> None:
        with pytest.raises(error):
            loop.run_until_complete(transport.request("GET", ("v1", "about")))

    def child() -> None:
        ask(loop, WrongEventLoopError)
        ask(asyncio.new_event_loop(), StoreUnavailableError)

    try:
        ask(loop, StoreUnavailableError)
        assert ended_well(in_a_fork(child))
        ask(loop, StoreUnavailableError)
    finally:
        loop.run_until_complete(transport.close())
        loop.close()


@pytest.mark.parametrize("url", ["http://h", "https://h", "http+unix://%2Fx.sock"])
async def test_an_idle_connection_ends_here_before_the_sidecar_ends_it(url: str) -> None:
    """Else the end could meet the next request."""
    async with make_session(parse_address(url), Options(), limit=1) as session:
        connector: Any = session.connector
        assert connector._keepalive_timeout < SidecarSettings().limits.header_s
