"""Fencing and retries: what was applied while the lease held stays so, whatever came since."""

# ruff: noqa: PLR0917 - arguments are fixtures

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fix_leases import Clients, LeaseStore, S
from fix_proxy import FaultProxy
from fix_servers import Server
from fix_state import Store, until

from llmspell_dist import Revision
from llmspell_dist.client import Spell
from llmspell_dist.errors import StaleFencingTokenError
from llmspell_dist.redis.scripts import load_script

pytestmark = pytest.mark.integration


async def test_a_retry_of_what_was_applied_gives_its_outcome_though_the_lease_has_ended(
    clients: Clients,
    store: Store,
    lease_store: LeaseStore,
    server: Server,
    fault_proxy: Callable[..., FaultProxy],
) -> None:
    """The operation id goes before the fence: the reply was lost, not the write."""
    proxy = fault_proxy(server)
    (far,) = await clients(1, to=proxy.url)
    lease = await far.leases.acquire(S, renew=False, on_lost="event")
    proxy.drop_reply(load_script("commit").sha)
    proxy.down(keep=True)  # no way back until the lease has ended
    write = asyncio.create_task(lease.state.increment(S, "n", 5))
    await until(lambda: len(store.log()) == 1)
    lease_store.expire()
    proxy.up()
    assert await asyncio.wait_for(write, 10) == 5
    assert proxy.struck == 1
    assert len(store.log()) == 1
    with pytest.raises(StaleFencingTokenError):
        await lease.state.increment(S, "n", 5)
    assert await far.state.get(S, "n") == 5
    await far.close()  # while there is a proxy


async def test_a_retry_of_what_was_not_applied_is_refused_if_the_lease_has_ended(
    clients: Clients,
    store: Store,
    lease_store: LeaseStore,
    server: Server,
    fault_proxy: Callable[..., FaultProxy],
) -> None:
    """It never happened, and it must not happen now."""
    proxy = fault_proxy(server)
    (far,) = await clients(1, to=proxy.url)
    lease = await far.leases.acquire(S, renew=False, on_lost="event")
    proxy.cut_before(load_script("commit").sha)
    proxy.down(keep=True)
    write = asyncio.create_task(lease.state.increment(S, "n", 5))
    await until(lambda: proxy.struck == 1)
    lease_store.expire()
    proxy.up()
    with pytest.raises(StaleFencingTokenError) as caught:
        await asyncio.wait_for(write, 10)
    assert caught.value.why == "expired"
    assert store.log() == []
    assert await far.state.get(S, "n") is None
    await far.close()  # while there is a proxy


async def test_a_write_that_is_held_up_on_its_way_is_refused_when_it_arrives_late(
    spell: Spell,
    clients: Clients,
    store: Store,
    lease_store: LeaseStore,
    server: Server,
    fault_proxy: Callable[..., FaultProxy],
) -> None:
    """As from a stopped server's socket: another holds the lease by then; nothing is changed."""
    proxy = fault_proxy(server)
    (far,) = await clients(1, to=proxy.url, call_timeout=60)
    lease = await far.leases.acquire(S, renew=False, on_lost="event", ttl=60)
    proxy.hold_request(load_script("commit").sha)
    write = asyncio.create_task(lease.state.set(S, "v", "late"))
    await until(lambda: proxy.struck == 1)
    lease_store.expire()
    async with spell.leases.acquire(S, ttl=600) as taken:  # nothing is renewed meanwhile
        assert isinstance(await taken.state.set(S, "v", "new"), Revision)
        before = store.dump()
        # Only now it gives up waiting, and sends it again.
        far._lanes.fast._wire.transport.abort()  # type: ignore[union-attr]
        await asyncio.gather(write, return_exceptions=True)
        assert proxy.release_requests() == 1
        assert await spell.state.get(S, "v") == "new"
        assert store.dump() == before
    with pytest.raises(StaleFencingTokenError):
        write.result()
    await far.close()  # while there is a proxy
