"""Modes: exclusive, shared by readers, held several times by one owner."""

from __future__ import annotations

import asyncio

import pytest
from fix_leases import Clients, LeaseStore, S, granted, in_line, nothing_left, renewals

from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    LeaseAlreadyHeldError,
    LeaseNotHeldError,
    LeaseUnavailableError,
    StaleFencingTokenError,
)
from llmspell_dist.leases.model import LeaseMode

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]


# --- shared ---------------------------------------------------------------------------------------


async def test_readers_hold_it_together(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Each with a token of its own, and no exclusive holder beside them."""
    (other,) = await clients(1)
    held = [
        await client.leases.acquire(S, mode=LeaseMode.SHARED, owner=f"r{i}", wait=0)
        for i, client in enumerate((spell, other, spell, other))
    ]
    assert len({lease.token for lease in held}) == 4
    info = await spell.leases.show(S)
    assert {holder.owner for holder in info.holders} == {"r0", "r1", "r2", "r3"}
    assert {holder.mode for holder in info.holders} == {LeaseMode.SHARED}
    with pytest.raises(LeaseUnavailableError) as caught:
        await other.leases.acquire(S, wait=0)
    assert {holder.owner for holder in caught.value.holders} == {"r0", "r1", "r2", "r3"}
    for lease in held:
        await lease.release()
    await nothing_left(lease_store, spell, other)


async def test_holders_are_named_in_the_order_of_their_grants(spell: Spell) -> None:
    """Also when their records are so long that the server keeps them in no order."""
    owners = [f"{'reader' * 20}-{n}" for n in range(12)]
    held = [await spell.leases.acquire(S, mode="shared", owner=owner) for owner in owners]
    assert [holder.owner for holder in (await spell.leases.show(S)).holders] == owners
    with pytest.raises(LeaseUnavailableError) as caught:
        await spell.leases.acquire(S, wait=0)
    assert [holder.owner for holder in caught.value.holders] == owners
    for lease in held:
        await lease.release()


async def test_a_reader_keeps_it_as_a_writer_does(spell: Spell, lease_store: LeaseStore) -> None:
    """Renewed by itself and by hand; once its time is over, it is over."""
    async with spell.leases.acquire(S, mode="shared", ttl=60) as lease:
        await renewals(lease_store, spell)
        (holder,) = (await spell.leases.show(S)).holders
        assert (holder.expires - holder.since).total_seconds() > 60
        assert await lease.renew(5) == 5
    late = await spell.leases.acquire(S, mode="shared", on_lost="event")
    lease_store.expire()
    with pytest.raises(LeaseNotHeldError, match="its time was over"):
        await late.renew()
    await nothing_left_after_expiry(lease_store, spell)


async def nothing_left_after_expiry(lease_store: LeaseStore, spell: Spell) -> None:
    """What has expired goes when the lease is wanted next."""
    async with spell.leases.acquire(S, owner="next"):
        assert lease_store.raw("HLEN", lease_store.readers(S)) == 0
    await nothing_left(lease_store, spell)


async def test_a_writer_waits_for_all_readers(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """It has the lease when the last of them has gone."""
    (other,) = await clients(1)
    readers = [await spell.leases.acquire(S, mode="shared", owner=f"r{i}") for i in range(3)]
    writer = await in_line(lease_store, other.leases.acquire(S))
    for reader in readers:
        assert not writer.done()
        assert lease_store.waiting() == 1
        await reader.release()
    lease = await granted(writer)
    assert lease.token > max(reader.token for reader in readers)
    await lease.release()
    await nothing_left(lease_store, spell, other)


async def test_a_reader_does_not_overtake_a_writer_that_waits(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """So writers do not starve; the readers behind it come together when it is done."""
    (other,) = await clients(1)
    first = await spell.leases.acquire(S, mode="shared")
    writer = await in_line(lease_store, other.leases.acquire(S))
    with pytest.raises(LeaseUnavailableError):
        await spell.leases.acquire(S, mode="shared", owner="late", wait=0)
    readers = [await in_line(lease_store, spell.leases.acquire(S, mode="shared")) for _ in range(3)]
    last = await in_line(lease_store, other.leases.acquire(S))
    await first.release()
    lease = await granted(writer)
    assert not any(reader.done() for reader in readers)
    await lease.release()
    together = [await granted(reader) for reader in readers]
    assert len((await spell.leases.show(S)).holders) == 3
    assert not last.done()
    for reader in together:
        await reader.release()
    await (await granted(last)).release()
    await nothing_left(lease_store, spell, other)


async def test_a_shared_lease_does_not_let_write(spell: Spell) -> None:
    """Several hold it at once: it fences nothing."""
    async with spell.leases.acquire(S, mode="shared") as lease:
        with pytest.raises(StaleFencingTokenError):
            await lease.state.set(S, "k", 1)
        assert await lease.state.get(S, "k") is None


async def test_a_lease_with_one_long_reader_is_listed_after_the_short_ones_are_over(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """In whatever order they came and renewed."""
    long = await spell.leases.acquire(S, mode="shared", owner="long", ttl=600)
    short = await spell.leases.acquire(S, mode="shared", owner="short", ttl=5, on_lost="event")
    await short.renew()
    record = lease_store.raw("HGET", lease_store.readers(S), "short")
    over = (lease_store.raw.now_ms() - 1).to_bytes(6, "big")
    lease_store.raw("HSET", lease_store.readers(S), "short", record[:8] + over + record[14:])
    (listed,) = await spell.leases.list()
    assert [holder.owner for holder in listed.holders] == ["long"]
    await long.release()
    assert await spell.leases.list() == []


# --- re-entrant -----------------------------------------------------------------------------------


async def test_one_owner_holds_it_several_times_and_releases_it_as_often(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """With the same token; it is free when the last hold is given back."""
    async with spell.leases.acquire(S) as outer:
        async with spell.leases.acquire(S, reentrant=True) as inner:
            async with spell.leases.acquire(S, reentrant=True) as innermost:
                assert outer.token == inner.token == innermost.token
                (holder,) = (await spell.leases.show(S)).holders
                assert holder.holds == 3
                await innermost.state.set(S, "k", 1)
            await inner.state.set(S, "k", 2)
        (holder,) = (await spell.leases.show(S)).holders
        assert holder.holds == 1
        await outer.state.set(S, "k", 3)
        with pytest.raises(LeaseUnavailableError):
            await spell.leases.acquire(S, owner="other", wait=0)
    assert len((await spell.leases.show(S)).history) == 1
    await nothing_left(lease_store, spell)


async def test_holds_can_end_in_any_order(spell: Spell, lease_store: LeaseStore) -> None:
    """The first one need not be the last."""
    holds = [await spell.leases.acquire(S, reentrant=True, owner="job") for _ in range(4)]
    for at in (1, 0, 2, 3):
        assert (await spell.leases.show(S)).held
        await holds[at].release()
    assert not (await spell.leases.show(S)).held
    await nothing_left(lease_store, spell)


async def test_readers_are_reentrant_too(spell: Spell, lease_store: LeaseStore) -> None:
    """In the same way, each owner for itself."""
    async with (
        spell.leases.acquire(S, mode="shared", owner="a") as first,
        spell.leases.acquire(S, mode="shared", owner="b"),
        spell.leases.acquire(S, mode="shared", owner="a", reentrant=True) as second,
    ):
        assert first.token == second.token
        holders = (await spell.leases.show(S)).holders
        assert sorted((holder.owner, holder.holds) for holder in holders) == [("a", 2), ("b", 1)]
    await nothing_left(lease_store, spell)


async def test_an_explicit_owner_holds_it_over_two_clients(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Both write, both renew; it is free when both have released it."""
    (other,) = await clients(1)
    one = await spell.leases.acquire(S, owner="job")
    two = await other.leases.acquire(S, owner="job", reentrant=True, wait=0)
    assert one.token == two.token
    await one.renew()
    await two.renew()
    await one.state.set(S, "k", 1)
    await one.release()
    await two.state.set(S, "k", 2)
    with pytest.raises(LeaseUnavailableError):
        await spell.leases.acquire(S, wait=0)
    await two.release()
    await nothing_left(lease_store, spell, other)


async def test_a_short_hold_inside_does_not_shorten_the_outer_one(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Each renews for its own time; what the longest counts on stays."""
    async with (
        spell.leases.acquire(S, ttl=60, owner="job", renew=False) as outer,
        spell.leases.acquire(S, ttl=10, owner="job", reentrant=True, renew=False) as inner,
    ):
        await inner.renew()
        record = lease_store.holder() or b""
        left_ms = int.from_bytes(record[8:14], "big") - lease_store.raw.now_ms()
        assert left_ms > 50_000
        await inner.release()
        await outer.state.set(S, "k", 1)


async def test_reentrant_holds_pass_those_who_wait(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """The owner holds it already; to wait behind them would never end."""
    (other,) = await clients(1)
    outer = await spell.leases.acquire(S)
    waiter = await in_line(lease_store, other.leases.acquire(S))
    inner = await spell.leases.acquire(S, reentrant=True)
    await inner.release()
    assert not waiter.done()
    await outer.release()
    await (await granted(waiter)).release()
    await nothing_left(lease_store, spell, other)


# --- what an owner cannot do ----------------------------------------------------------------------


async def test_acquiring_twice_is_refused_without_reentrancy(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """At once, however long it would wait; the error says what to do, and nothing is changed."""
    async with spell.leases.acquire(S) as lease:
        before = lease_store.holder()
        for wait in (0, 60, None):
            with pytest.raises(LeaseAlreadyHeldError, match="reentrant=True") as caught:
                await spell.leases.acquire(S, wait=wait)
            assert (caught.value.token, caught.value.owner) == (lease.token, lease.owner)
            assert caught.value.mode == ""
        assert lease_store.holder() == before
    await nothing_left(lease_store, spell)


async def test_the_mode_cannot_be_changed_while_it_is_held(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Neither up nor down, re-entrant or not."""
    for held, wanted in (("shared", "exclusive"), ("exclusive", "shared")):
        async with spell.leases.acquire(S, mode=held, owner="job"):
            with pytest.raises(LeaseAlreadyHeldError, match="release it before") as caught:
                await spell.leases.acquire(S, mode=wanted, owner="job", reentrant=True)
            assert caught.value.mode == held
            with pytest.raises(LeaseAlreadyHeldError, match="reentrant=True"):
                await spell.leases.acquire(S, mode=wanted, owner="job")
    await nothing_left(lease_store, spell)


async def test_tasks_are_different_owners(spell: Spell) -> None:
    """Within one client too: two tasks exclude each other, a task is the same owner every time."""
    owners = []

    async def hold() -> None:
        for _ in range(2):
            async with spell.leases.acquire(S) as lease:
                owners.append(lease.owner)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(hold())
    assert len(owners) == 6
    assert len(set(owners)) == 3


# --- several waiters of one owner -----------------------------------------------------------------


@pytest.mark.parametrize("mode", LeaseMode)
async def test_waiters_of_one_owner_hold_it_together_if_reentrant(
    spell: Spell, clients: Clients, lease_store: LeaseStore, mode: LeaseMode
) -> None:
    """The second does not wait for the first, takes nothing from it, and leaves the line."""
    (other,) = await clients(1)
    first = await spell.leases.acquire(S)
    waiters = [
        await in_line(
            lease_store,
            client.leases.acquire(S, owner="job", mode=mode, reentrant=True),
        )
        for client in (other, other, spell)
    ]
    await first.release()
    held = [await granted(waiter) for waiter in waiters]
    assert len({lease.token for lease in held}) == 1
    (holder,) = (await spell.leases.show(S)).holders
    assert (holder.owner, holder.holds) == ("job", 3)
    assert lease_store.waiting() == 0
    for lease in held:
        await lease.renew()
        await lease.release()
    await nothing_left(lease_store, spell, other)


@pytest.mark.parametrize("mode", LeaseMode)
async def test_waiters_of_one_owner_are_refused_if_not_reentrant(
    spell: Spell, lease_store: LeaseStore, mode: LeaseMode
) -> None:
    """The first has it; the others hear what they would have heard had they come now."""
    first = await spell.leases.acquire(S)
    waiters = [
        await in_line(lease_store, spell.leases.acquire(S, owner="job", mode=mode))
        for _ in range(3)
    ]
    await first.release()
    held = await granted(waiters[0])
    for waiter in waiters[1:]:
        with pytest.raises(LeaseAlreadyHeldError):
            await granted(waiter)
    assert held.held
    await held.renew()
    await held.release()
    await nothing_left(lease_store, spell)
