"""Waiting for a lease: in the order of arrival, bounded, woken and not polling."""

# ruff: noqa: PLR0917 - arguments are fixtures

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import cycle
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, S, granted, in_line, nothing_left
from fix_proxy import FaultProxy
from fix_servers import Server
from fix_state import until

from llmspell_dist.client import Spell
from llmspell_dist.errors import LeaseNotHeldError, LeaseUnavailableError
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.model import LeaseHow
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.scripts import load_script

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]


# --- order ----------------------------------------------------------------------------------------


async def test_waiters_are_served_in_the_order_of_their_arrival(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Twenty over four clients, each once, alone, with a higher token than before."""
    others = await clients(4)
    lease = await spell.leases.acquire(S)
    served: list[tuple[int, int]] = []
    inside = 0

    async def work(client: Spell, number: int) -> None:
        nonlocal inside
        async with client.leases.acquire(S) as held:
            inside += 1
            assert inside == 1
            served.append((number, held.token))
            await held.state.set(S, "last", number)
            inside -= 1

    waiters = [
        await in_line(lease_store, work(client, number))
        for number, client in zip(range(20), cycle(others), strict=False)
    ]
    info = await spell.leases.show(S)
    assert info.waiting == 20
    await lease.release()
    await asyncio.wait_for(asyncio.gather(*waiters), 20)
    assert [number for number, _ in served] == list(range(20))
    tokens = [lease.token, *[token for _, token in served]]
    assert tokens == sorted(set(tokens))
    await nothing_left(lease_store, spell, *others)


async def test_who_comes_later_does_not_overtake_by_trying_once(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """The lease goes from hand to hand; there is no moment in which it is free."""
    (other,) = await clients(1)
    for _ in range(10):
        lease = await spell.leases.acquire(S, owner="first")
        waiter = await in_line(lease_store, other.leases.acquire(S))
        release = asyncio.create_task(lease.release())
        tries = [_hold(spell.leases.acquire(S, owner=f"o{i}", wait=0)) for i in range(5)]
        for one in await asyncio.gather(*tries, return_exceptions=True):
            assert isinstance(one, LeaseUnavailableError)
        await release
        await (await granted(waiter)).release()
    await nothing_left(lease_store, spell, other)


async def _hold(wish: Awaitable[Lease]) -> Lease:
    """Await what `acquire` returns, as a coroutine."""
    return await wish


def _has_more(proxy: FaultProxy, connections: int) -> bool:
    return proxy.connections > connections


# --- bounds ---------------------------------------------------------------------------------------


async def test_trying_once_does_not_wait(spell: Spell, lease_store: LeaseStore) -> None:
    """The error names the holder; nothing is left of the attempt."""
    async with spell.leases.acquire(S, label="night job") as lease:
        with pytest.raises(LeaseUnavailableError, match="night job") as caught:
            await spell.leases.acquire(S, owner="other", wait=0)
        (holder,) = caught.value.holders
        assert (holder.token, holder.owner, holder.label) == (
            lease.token,
            lease.owner,
            "night job",
        )
        assert caught.value.waited_s == 0
        assert caught.value.retryable
        assert lease_store.waiting() == 0
    await nothing_left(lease_store, spell)


async def test_a_bounded_wait_ends(spell: Spell, lease_store: LeaseStore) -> None:
    """After the time given, not before; the error says who holds it and how long was waited."""
    async with spell.leases.acquire(S, label="night job") as lease:
        with pytest.raises(LeaseUnavailableError, match="night job") as caught:
            await asyncio.wait_for(_hold(spell.leases.acquire(S, owner="other", wait=0.1)), 5)
        assert caught.value.holders[0].token == lease.token
        assert 0.1 <= caught.value.waited_s < 5
        assert lease_store.waiting() == 0
        info = await spell.leases.show(S)
        assert info.waiting == 0
    await nothing_left(lease_store, spell)


async def test_a_bounded_wait_is_granted_within_its_time(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """As soon as it comes free; the deadline stands with the waiter."""
    (other,) = await clients(1)
    lease = await spell.leases.acquire(S)
    waiter = await in_line(lease_store, other.leases.acquire(S, wait=30))
    (shown,) = (await spell.leases.show(S)).waiters
    assert shown.deadline is not None
    assert 29 < (shown.deadline - shown.since).total_seconds() <= 30
    await lease.release()
    await (await granted(waiter)).release()
    await nothing_left(lease_store, spell, other)


# --- holders and waiters that are gone ------------------------------------------------------------


async def test_the_next_has_it_when_the_holder_s_time_is_over(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Nobody wakes anybody then: the first in line looks by itself, at once."""
    (other,) = await clients(1)
    lost = await spell.leases.acquire(S, ttl=60, renew=False, on_lost="event")
    waiters = [await in_line(lease_store, other.leases.acquire(S, ttl=60)) for _ in range(2)]
    lease_store.put_expiry(lease_store.raw.now_ms() + 500)
    other.leases._wakes._resumed()  # they ask once more, and hear how long it is
    held = await granted(waiters[0])
    past = (await spell.leases.show(S)).history[0]
    assert (past.how, past.holder.token) == (LeaseHow.EXPIRED, lost.token)
    (holder,) = (await spell.leases.show(S)).holders
    assert 0 <= (holder.since - past.ended).total_seconds() < 5
    await held.release()
    await (await granted(waiters[1])).release()
    with pytest.raises(LeaseNotHeldError):
        await lost.release()
    await nothing_left(lease_store, spell, other)


async def test_a_waiter_whose_client_is_gone_is_skipped(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """It does not hear its turn; the next one in line has the lease at once."""
    gone, here = await clients(2)
    lease = await spell.leases.acquire(S)
    dead = [await in_line(lease_store, gone.leases.acquire(S)) for _ in range(3)]
    alive = await in_line(lease_store, here.leases.acquire(S))
    await gone._hub.close()  # as if its process had died: nothing of it listens any more

    async def seen() -> bool:
        waiters = (await spell.leases.show(S)).waiters
        return [waiter.connected for waiter in waiters] == [False, False, False, True]

    await until(seen)
    await lease.release()
    held = await granted(alive)
    assert lease_store.waiting() == 0
    for task in dead:
        task.cancel()
    await asyncio.gather(*dead, return_exceptions=True)
    await held.release()
    await nothing_left(lease_store, spell, here, gone)


@pytest.mark.parametrize("how", ["release", "break"])
@pytest.mark.parametrize("mode", ["exclusive", "shared"])
async def test_a_grant_that_nobody_uses_goes_to_the_next_after_its_time(
    spell: Spell, clients: Clients, lease_store: LeaseStore, how: str, mode: str
) -> None:
    """A client that hears its turn and does nothing is as one that died, however short its time."""
    frozen, here = await clients(2)
    lease = await spell.leases.acquire(S, ttl=60, on_lost="event")
    first = await in_line(lease_store, frozen.leases.acquire(S, ttl=0.3, mode=mode))
    second = await in_line(lease_store, here.leases.acquire(S))
    heard: list[bytes] = []
    wire, channel = frozen._hub._wire, frozen.leases.steps.channel("0")
    assert wire is not None
    hears, wire.listeners[channel] = wire.listeners[channel], heard.append
    if how == "release":
        await lease.release()
    else:
        await spell.leases.break_lease(S, reason="test")
    held = await granted(second)
    assert any(message[12:13] == b"g" for message in heard)
    history = (await spell.leases.show(S)).history
    assert history[0].how is LeaseHow.EXPIRED
    # It thaws, and hears now what was over long ago: it does not hold anything by that.
    wire.listeners[channel] = hears
    (waiter,) = frozen.leases._wakes._waiters.values()
    waiter.take(b"r")  # it looks, and is in line again
    await until(lambda: lease_store.waiting() == 1)
    await frozen.ping()
    hears(next(message for message in heard if message[12:13] == b"g"))
    for _ in range(3):
        await frozen.ping()
    assert not first.done()
    await held.release()
    late = await granted(first)
    assert late.token > held.token
    await late.release()
    await nothing_left(lease_store, here, frozen)


# --- no polling -----------------------------------------------------------------------------------


class Counted:
    """Counts by script what a client sends for leases."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *spells: Spell) -> None:
        self.sent: Counter[str] = Counter()
        for spell in spells:
            execute = spell.leases.execute

            def counting(call: Command | ScriptCall, execute: Any = execute) -> Any:
                self.sent[call.name] += 1
                return execute(call)

            monkeypatch.setattr(spell.leases, "execute", counting)


async def test_waiters_do_not_poll(
    spell: Spell, clients: Clients, lease_store: LeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred wait while the holder goes on and on: each asks twice on arrival, then sleeps."""
    (other,) = await clients(1)
    lease = await spell.leases.acquire(S)
    counted = Counted(monkeypatch, other)
    tasks = [asyncio.create_task(_hold(other.leases.acquire(S))) for _ in range(100)]
    await until(lambda: lease_store.waiting() == 100)
    await until(lambda: counted.sent["lease_acquire"] >= 200)
    for _ in range(50):
        await lease.renew()
        await lease.state.increment(S, "n")
    assert counted.sent == {"lease_acquire": 200}
    await lease.release()
    for task in tasks:
        await (await granted(task)).release()
    # Each has it by the message alone, and nobody else was woken for it.
    assert counted.sent == {"lease_acquire": 200, "lease_release": 100}
    await nothing_left(lease_store, spell, other)


@pytest.mark.needs("info")
async def test_the_server_sees_no_polling(
    *,
    spell: Spell,
    clients: Clients,
    lease_store: LeaseStore,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its own count of commands: nothing runs for those who wait."""
    (other,) = await clients(1)
    lease = await spell.leases.acquire(S, ttl=60)
    counted = Counted(monkeypatch, other)
    tasks = [asyncio.create_task(_hold(other.leases.acquire(S))) for _ in range(100)]
    await until(lambda: lease_store.waiting() == 100)
    await until(lambda: counted.sent["lease_acquire"] == 200)  # each asks twice on arrival
    await other.ping()  # behind all that it has sent
    server.call("CONFIG", "RESETSTAT")
    for _ in range(50):
        await lease.renew()
    stats = server.call("INFO", "commandstats").decode()
    calls = {
        line.partition(":")[0].removeprefix("cmdstat_"): int(
            line.partition("calls=")[2].split(",")[0]
        )
        for line in stats.splitlines()
        if line.startswith("cmdstat_")
    }
    assert calls["evalsha"] == 50
    assert "publish" not in calls
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await lease.release()
    await nothing_left(lease_store, spell, other)


# --- connections ----------------------------------------------------------------------------------


async def test_a_waiter_keeps_its_place_over_a_lost_connection(
    spell: Spell,
    clients: Clients,
    lease_store: LeaseStore,
    server: Server,
    fault_proxy: Callable[..., FaultProxy],
) -> None:
    """Both before it and after it others wait; all are served in their order."""
    proxy = fault_proxy(server)
    (here,) = await clients(1)
    (far,) = await clients(1, to=proxy.url)
    lease = await spell.leases.acquire(S)
    served: list[int] = []

    async def work(client: Spell, number: int) -> None:
        async with client.leases.acquire(S):
            served.append(number)

    waiters = [
        await in_line(lease_store, work(client, number))
        for number, client in enumerate((here, far, here, far, here))
    ]
    for _ in range(3):
        before = proxy.connections
        assert proxy.reset_peer() > 0
        await until(partial(_has_more, proxy, before))
        await until(lambda: far._hub.connected)
    # Subscribed again, and every waiter has asked how its place stands.
    await far.ping()

    async def all_listen() -> bool:
        return all(waiter.connected for waiter in (await spell.leases.show(S)).waiters)

    await until(all_listen)
    assert lease_store.waiting() == 5
    await lease.release()
    await asyncio.wait_for(asyncio.gather(*waiters), 10)
    assert served == list(range(5))
    await nothing_left(lease_store, spell, here, far)


async def test_a_turn_that_came_while_the_connection_was_down_is_not_missed(
    spell: Spell,
    clients: Clients,
    lease_store: LeaseStore,
    server: Server,
    fault_proxy: Callable[..., FaultProxy],
) -> None:
    """The bell was lost; when it hears again it asks, and goes back to where it stood."""
    proxy = fault_proxy(server)
    (here,) = await clients(1)
    (far,) = await clients(1, to=proxy.url)
    lease = await spell.leases.acquire(S)
    first = await in_line(lease_store, far.leases.acquire(S))
    second = await in_line(lease_store, here.leases.acquire(S))
    third = await in_line(lease_store, here.leases.acquire(S))
    proxy.down()

    async def not_heard() -> bool:
        return not (await spell.leases.show(S)).waiters[0].connected

    await until(not_heard)
    await lease.release()  # nobody hears that at the far end
    held = await granted(second)
    assert not first.done()
    proxy.up()
    await until(lambda: lease_store.waiting() == 2)  # back in line, before the third
    await held.release()
    far_held = await granted(first)
    assert not third.done()
    await far_held.release()
    await (await granted(third)).release()
    await nothing_left(lease_store, spell, here, far)


@pytest.mark.parametrize("fault", ["drop_reply", "cut_before"])
@pytest.mark.parametrize("script", ["lease_acquire", "lease_release", "lease_renew"])
async def test_a_lost_reply_changes_nothing(
    spell: Spell,
    clients: Clients,
    lease_store: LeaseStore,
    server: Server,
    fault_proxy: Callable[..., FaultProxy],
    fault: str,
    script: str,
) -> None:
    """What is sent again is known: one hold, one release, and no error."""
    proxy = fault_proxy(server)
    (far,) = await clients(1, to=proxy.url)
    sha = load_script(script).sha
    for options in ({}, {"mode": "shared"}, {"reentrant": True}):
        arguments: dict[str, Any] = options
        getattr(proxy, fault)(sha)
        async with far.leases.acquire(S, owner="job", **arguments) as lease:
            await lease.renew()
            assert (await spell.leases.show(S)).holders[0].holds == 1
        assert not lease.lost.is_set()
        assert proxy.struck > 0
    history = (await spell.leases.show(S)).history
    assert [past.how for past in history] == [LeaseHow.RELEASED] * 3
    await nothing_left(lease_store, spell, far)


@pytest.mark.parametrize("inner", [False, True])
async def test_a_release_whose_reply_is_lost_counts_though_others_came_since(
    spell: Spell,
    clients: Clients,
    lease_store: LeaseStore,
    server: Server,
    fault_proxy: Callable[..., FaultProxy],
    inner: bool,
) -> None:
    """Sent again it is known, not taken for a lease that was lost."""
    proxy = fault_proxy(server)
    (far,) = await clients(1, to=proxy.url)
    lease = outer = await far.leases.acquire(S, owner="job")
    if inner:
        lease = await far.leases.acquire(S, owner="job", reentrant=True)
    proxy.drop_reply(load_script("lease_release").sha)
    proxy.hold_replies()
    release = asyncio.create_task(lease.release())
    last = outer
    if not inner:
        for _ in range(3):  # the first attempt has been carried out, so the lease is free
            other = await asyncio.wait_for(_hold(spell.leases.acquire(S)), 5)
            await other.release()
        last = await spell.leases.acquire(S)
    proxy.clear()
    await asyncio.wait_for(release, 10)
    if inner:
        (holder,) = (await spell.leases.show(S)).holders
        assert holder.holds == 1
    await last.release()
    await nothing_left(lease_store, spell, far)
