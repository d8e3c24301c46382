"""The end of a client: it waits for what is in flight, refuses the rest, leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings

import psutil
import pytest
from fix_faults import SCOPE, Proxies, Servers, Writers, blocking_client, client, ends, outcome
from fix_servers import Server
from fix_state import Store, until

from llmspell_dist.errors import ClosedError, OutcomeUnknownError, StoreUnavailableError

pytestmark = [pytest.mark.integration, pytest.mark.needs("process")]


def sockets() -> int:
    """How many connected sockets this process has."""
    return len(psutil.Process().net_connections("all"))


async def test_closing_waits_for_what_is_in_flight_and_refuses_the_rest(
    server: Server, namespace: str, store: Store
) -> None:
    """A thousand calls in flight all end well; calls after that are refused; twice is allowed."""
    writers = Writers(store)
    spell = await client(server, namespace)
    await writers.prepare(spell.state)
    tasks = writers.burst(spell.state, 1000)
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(spell.close())
    await asyncio.sleep(0)
    for call in (spell.state.get(SCOPE, "a"), spell.state.set(SCOPE, "a", 1), spell.ping()):
        with pytest.raises(ClosedError):
            await call
    await asyncio.gather(closing, spell.close())
    await ends(tasks)
    await spell.close()
    async with client(server, namespace) as other:
        counts = await writers.check(other.state)
    assert counts["acknowledged"] == 1000


async def test_an_error_inside_the_block_leaves_as_it_is_and_closes(
    server: Server, namespace: str
) -> None:
    """The caller's own exception comes out, and the client is closed."""
    opened = []

    async def fail() -> None:
        async with client(server, namespace) as spell:
            opened.append(spell)
            await spell.state.set(SCOPE, "a", 1)
            async with spell.state.transaction() as tx:
                tx.set(SCOPE, "a", 1 // 0)

    with pytest.raises(ZeroDivisionError):
        await fail()
    with pytest.raises(ClosedError):
        await opened[0].state.get(SCOPE, "a")
    with pytest.raises(ZeroDivisionError), blocking_client(server, namespace) as blocks:
        _ = 1 / 0
    with pytest.raises(ClosedError):
        blocks.state.get(SCOPE, "a")


async def test_clients_leave_no_socket_task_thread_or_warning_behind(
    server: Server, namespace: str, fault_proxy: Proxies
) -> None:
    """Thirty clients of both kinds, some cut off, some cancelled: afterwards all is as before."""
    proxy = fault_proxy(server)
    gc.collect()
    before = sockets(), len(asyncio.all_tasks()), threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(10):
            async with client(server, namespace) as spell:
                await spell.state.set(SCOPE, "large", b"x" * 200_000)
                await spell.state.increment(SCOPE, "n")
            async with client(proxy, namespace) as spell:
                task = asyncio.ensure_future(spell.state.increment(SCOPE, "n"))
                await asyncio.sleep(0)
                task.cancel()
                if i % 2:
                    proxy.reset_peer()
            with blocking_client(server, namespace) as blocks:
                blocks.state.increment(SCOPE, "n")
        opening = asyncio.ensure_future(_open(server, namespace))
        await asyncio.sleep(0.001)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        del opening
        gc.collect()
        await asyncio.sleep(0)
    proxy.reset_peer()

    def as_before() -> bool:
        return (sockets(), len(asyncio.all_tasks())) == before[:2]

    await until(as_before)
    # asyncio.to_thread keeps its own threads.
    ours = [t for t in threading.enumerate() if not t.name.startswith("asyncio_")]
    assert len(ours) <= before[2]


async def _open(server: Server, namespace: str) -> None:
    async with client(server, namespace):
        await asyncio.sleep(10)


@pytest.mark.slow
async def test_closing_beside_a_dead_server_is_bounded(own_server: Servers, namespace: str) -> None:
    """What nobody can answer any more fails in time, as unknown if it had left."""
    server = own_server()
    spell = await client(server, namespace)
    await spell.state.set(SCOPE, "a", 1)
    server.kill()
    waiting = [asyncio.ensure_future(outcome(spell.state.increment(SCOPE, "n"))) for _ in range(9)]
    await asyncio.sleep(0)
    async with asyncio.timeout(8):
        await spell.close()
    for told in await asyncio.gather(*waiting):
        assert isinstance(told, StoreUnavailableError)
        assert isinstance(told, OutcomeUnknownError) == told.may_have_happened


def test_closing_a_blocking_client_waits_for_its_threads(
    server: Server, namespace: str, store: Store
) -> None:
    """Threads in mid-call end well, the next call is refused."""
    spell = blocking_client(server, namespace)
    told: list[float] = []
    refused = []

    def work() -> None:
        try:
            while True:
                told.append(spell.state.increment(SCOPE, "n"))
        except ClosedError as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(told) < 100:
        threading.Event().wait(0.001)
    spell.close()
    for thread in threads:
        thread.join(10)
    spell.close()
    assert len(refused) == 4
    assert sorted(told) == list(range(1, len(told) + 1))
    assert len(store.log()) == len(told)
