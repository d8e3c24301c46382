"""Several leases at once: in one fixed order, all or none, and their fences together."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, at_rest, granted, hasten, in_line, nothing_left
from fix_state import until

from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    InvalidArgumentError,
    InvalidScopeError,
    LeaseLostError,
    LeaseNotHeldError,
    LeaseUnavailableError,
    StaleFencingTokenError,
)

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
A, B, C = "agent:a", "agent:b", "agent:c"


async def test_they_are_taken_in_the_same_order_by_everybody(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """However they are named, so that nobody waits in a circle."""
    orders = []
    several: list[list[Any]] = [
        [A, B, (A, "z"), C],
        [C, (A, "z"), B, A],
        [(C, "main"), B, A, (A, "z")],
    ]
    for wanted in several:
        async with spell.leases.acquire_all(wanted) as group:
            orders.append([(str(lease.scope), lease.name) for lease in group])
            assert [lease.token for lease in group] == sorted(lease.token for lease in group)
            assert len(group) == 4
            assert group.held
            group.check()
            assert group[0].held
        assert not group.held
    assert orders[0] == orders[1] == orders[2]
    for scope in (A, B, C):
        await nothing_left(lease_store, spell, scope=scope)


async def test_many_who_want_the_same_ones_crosswise_all_come_through(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Without a deadlock, and never two inside at once."""
    several = [spell, *await clients(2)]
    inside = done = 0

    async def work(client: Spell, wanted: list[Any]) -> None:
        nonlocal inside, done
        async with client.leases.acquire_all(wanted) as group:
            inside += 1
            assert inside == 1
            await group.state.increment(A, "n")
            inside -= 1
            done += 1

    orders: list[list[Any]] = [[A, B], [B, A], [A, B, C], [C, B, A], [B, C, A]]
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for number in range(30):
            tasks.create_task(work(several[number % 3], orders[number % 5]))
    assert done == 30
    assert await spell.state.get(A, "n") == 30
    for scope in (A, B, C):
        await nothing_left(lease_store, *several, scope=scope)


async def test_all_or_none(spell: Spell, clients: Clients, lease_store: LeaseStore) -> None:
    """If one cannot be had in time, those that were taken are given back."""
    (other,) = await clients(1)
    async with other.leases.acquire(B) as held:
        for wait in (0, 0.05):
            with pytest.raises(LeaseUnavailableError) as caught:
                await spell.leases.acquire_all([A, B, C], wait=wait)
            assert caught.value.scope == B
            assert caught.value.holders[0].token == held.token
            await nothing_left(lease_store, spell, scope=A)
            assert lease_store.left_over(C) == []
    async with spell.leases.acquire_all([A, B, C], wait=0) as group:
        assert group.held


async def test_the_wait_is_for_all_together(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """What was waited for the first is not there for the second any more."""
    (other,) = await clients(1)
    first, second = await other.leases.acquire(A), await other.leases.acquire(B, owner="o")
    task = await in_line(lease_store, spell.leases.acquire_all([A, B], wait=30), scope=A)
    in_line_at = monotonic()
    await until(lambda: monotonic() > in_line_at + 0.8)
    await first.release()
    await until(lambda: lease_store.waiting(B) == 1)
    (waiter,) = (await other.leases.show(B)).waiters
    assert waiter.deadline is not None
    assert (waiter.deadline - waiter.since).total_seconds() < 30 - 0.5
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await second.release()
    await nothing_left(lease_store, spell, other, scope=A)
    await nothing_left(lease_store, spell, other, scope=B)


async def test_cancelled_on_the_way_it_leaves_nothing(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Some held, one waited for."""
    (other,) = await clients(1)
    async with other.leases.acquire(C):
        task = await in_line(lease_store, spell.leases.acquire_all([A, B, C]), scope=C)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for scope in (A, B):
            await nothing_left(lease_store, spell, scope=scope)
    assert lease_store.left_over(C) == []


@pytest.mark.parametrize("on_lost", ["cancel", "event"])
async def test_one_that_is_lost_on_the_way_fails_the_whole(
    spell: Spell, clients: Clients, lease_store: LeaseStore, on_lost: str
) -> None:
    """While another was waited for: all are given back, and the caller hears why."""
    (other,) = await clients(1)
    held = await other.leases.acquire(B)
    wish = spell.leases.acquire_all([A, B], on_lost=on_lost)
    task = await in_line(lease_store, wish, scope=B)
    await until(lambda: lease_store.holder(A) is not None)
    lease_store.expire(A)
    hasten(spell)
    await until(lambda: not spell.leases._grants)
    if on_lost == "event":
        assert not task.done()
        await held.release()
    with pytest.raises(LeaseLostError) as caught:
        await granted(task)
    assert caught.value.scope == A
    assert not task.cancelled()
    if held.held:
        await held.release()
    await until(lambda: at_rest(spell, other))
    assert lease_store.left_over(B) == []


async def test_the_task_is_cancelled_if_one_of_them_is_lost(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Once, however many are; the others are given back."""
    for lost in ([A], [A, B], [A, B, C]):
        with pytest.raises(LeaseLostError) as caught:  # noqa: PT012 - the loss comes at its end
            async with spell.leases.acquire_all([A, B, C]) as group:
                for scope in lost:
                    lease_store.expire(scope)
                hasten(spell)
                await asyncio.wait_for(asyncio.Event().wait(), 10)
        assert caught.value.scope in lost
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert not group.held
        with pytest.raises(LeaseLostError):
            group.check()
        await until(lambda: at_rest(spell))


async def test_released_by_hand_all_are_tried(spell: Spell, lease_store: LeaseStore) -> None:
    """The first that was not held any more is named when all are given back."""
    group = await spell.leases.acquire_all([A, B, C], on_lost="event")
    lease_store.expire(B)
    with pytest.raises(LeaseNotHeldError) as caught:
        await group.release()
    assert caught.value.scope == B
    for scope in (A, C):
        await nothing_left(lease_store, spell, scope=scope)
    group = await spell.leases.acquire_all([A, C])
    await group.release()
    await nothing_left(lease_store, spell, scope=A)


async def test_readers_can_take_several_too(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """In shared mode, beside one another."""
    (other,) = await clients(1)
    async with (
        spell.leases.acquire_all([A, B], mode="shared", owner="one", label="first"),
        other.leases.acquire_all([B, A], mode="shared", owner="two", wait=0),
    ):
        info = await spell.leases.show(A)
        assert sorted(holder.owner for holder in info.holders) == ["one", "two"]
    await nothing_left(lease_store, spell, other, scope=A)


async def test_the_state_carries_all_fences(spell: Spell, lease_store: LeaseStore) -> None:
    """If one of them does not hold, nothing is written, wherever it was to go."""
    async with spell.leases.acquire_all([A, B], on_lost="event") as group:
        await group.state.set(A, "v", 1)
        await group.state.set(C, "v", 1)
        assert lease_store.store.meta(A).fence == group[0].token
        record = lease_store.raw("HGETALL", lease_store.key(B))
        lease_store.expire(B)
        for scope in (A, B, C):
            with pytest.raises(StaleFencingTokenError) as caught:
                await group.state.set(scope, "v", 2)
            assert (caught.value.scope, caught.value.why) == (B, "expired")
        lease_store.raw("HSET", lease_store.key(B), *record)
        await group.state.set(B, "v", 3)
    assert await spell.state.get(A, "v") == 1


async def test_what_makes_no_sense_is_refused(spell: Spell, lease_store: LeaseStore) -> None:
    """Duplicates, nothing, too many, one scope where several belong: nothing is sent."""
    leases = spell.leases
    bad: list[Any] = [[A, A], [A, (A, "main")], [(A, "x"), B, (A, "x")], [], A, b"agent:a"]
    bad.append([f"agent:{number}" for number in range(65)])
    for targets in bad:
        with pytest.raises(InvalidArgumentError) as caught:
            leases.acquire_all(targets)
        assert caught.value.argument == "targets"
    with pytest.raises(InvalidScopeError):
        leases.acquire_all([A, "nonsense"])
    with pytest.raises(InvalidArgumentError) as caught:
        leases.acquire_all([(A, "")])
    assert caught.value.argument == "name"
    assert lease_store.raw("EXISTS", lease_store.registry) == 0
