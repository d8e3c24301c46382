"""Cancellation in every state: nothing is left in the line, in the registry or with the holder."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, S, granted, in_line, nothing_left, outcome
from fix_state import until

from llmspell_dist.client import Spell
from llmspell_dist.errors import LeaseUnavailableError

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended, cancelled."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def acquire(spell: Spell, **options: Any) -> Any:
    """Acquire, as a coroutine."""
    return await spell.leases.acquire(S, **options)


async def test_cancelled_before_the_reply_came(spell: Spell, lease_store: LeaseStore) -> None:
    """The server may have granted it already: it is given back unasked."""
    for turns in range(4):
        task = asyncio.create_task(acquire(spell))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.done():
            await ended(task)
        else:
            await task.result().release()
        await nothing_left(lease_store, spell)
    async with spell.leases.acquire(S, wait=0):
        pass


async def test_cancelled_in_line(spell: Spell, clients: Clients, lease_store: LeaseStore) -> None:
    """First, in the middle, last: the others keep their order."""
    (other,) = await clients(1)
    lease = await spell.leases.acquire(S)
    waiters = [await in_line(lease_store, acquire(other)) for _ in range(5)]
    for at, left in ((0, 4), (2, 3), (4, 2)):
        await ended(waiters[at])
        # The cancelled one does not wait for it, so ask behind it on the same connection.
        await other.leases.show(S)
        assert lease_store.waiting() == left
    await lease.release()
    first = await granted(waiters[1])
    assert not waiters[3].done()
    await first.release()
    await (await granted(waiters[3])).release()
    await nothing_left(lease_store, spell, other)


async def test_cancelled_at_the_moment_of_the_grant(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """The lease is already its own, and it does not know it: the next one has it at once."""
    (other,) = await clients(1)
    for turns in range(8):
        lease = await spell.leases.acquire(S)
        unlucky = await in_line(lease_store, acquire(other))
        lucky = await in_line(lease_store, acquire(other))
        await lease.release()
        for _ in range(turns):
            await asyncio.sleep(0)
        unlucky.cancel()
        got = await outcome(unlucky)
        if not isinstance(got, asyncio.CancelledError):
            await got.release()
        await (await granted(lucky)).release()
        await nothing_left(lease_store, spell, other)


@pytest.mark.library_only("giving up is the sidecar's")
async def test_cancelled_while_it_gives_up(
    spell: Spell, lease_store: LeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to wait is over and the place is being given back."""
    for turns in range(4):
        async with spell.leases.acquire(S):
            waiter = await in_line(lease_store, acquire(spell, wait=0.02))
            giving_up = asyncio.Event()
            real = spell.leases.give_back

            async def give_back(*args: Any, real: Any = real, e: Any = giving_up) -> Any:
                e.set()
                return await real(*args)

            monkeypatch.setattr(spell.leases, "give_back", give_back)
            await asyncio.wait_for(giving_up.wait(), 5)
            monkeypatch.setattr(spell.leases, "give_back", real)
            for _ in range(turns):
                await asyncio.sleep(0)
            waiter.cancel()
            ending = await outcome(waiter)
            assert isinstance(ending, (asyncio.CancelledError, LeaseUnavailableError))
        await nothing_left(lease_store, spell)


async def test_cancelled_while_it_releases(spell: Spell, lease_store: LeaseStore) -> None:
    """It is released all the same."""
    for turns in range(3):
        lease = await spell.leases.acquire(S)
        task = asyncio.create_task(lease.release())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if turns == 0:  # it never began
            assert lease.held
            await lease.release()
        assert not lease.held
        await nothing_left(lease_store, spell)


async def test_cancelled_in_the_block(spell: Spell, lease_store: LeaseStore) -> None:
    """The block ends with the cancellation, and the lease is given back."""
    inside = asyncio.Event()

    async def work() -> None:
        async with spell.leases.acquire(S):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    await ended(task)
    await nothing_left(lease_store, spell)


async def test_one_of_several_waiters_can_go_while_all_subscribe(
    clients: Clients, spell: Spell, lease_store: LeaseStore
) -> None:
    """The first ones of a client share its subscription; who goes leaves it to the others."""
    lease = await spell.leases.acquire(S)
    (other,) = await clients(1)
    tasks = [asyncio.create_task(acquire(other)) for _ in range(4)]
    await until(lambda: bool(other.leases._wakes._subscribing), every_s=0)
    tasks[0].cancel()
    tasks[2].cancel()
    await lease.release()
    for task in (tasks[1], tasks[3]):
        await (await granted(task)).release()
    await asyncio.gather(*tasks, return_exceptions=True)
    await nothing_left(lease_store, spell, other)


@pytest.mark.parametrize("seed", range(4))
async def test_cancelled_at_random_moments(
    spell: Spell, clients: Clients, lease_store: LeaseStore, seed: int
) -> None:
    """Many rounds of many tasks over three clients: never two holders, and nothing is left."""
    rng = random.Random(seed)
    several = [spell, *await clients(2)]
    inside = completed = cancelled = 0

    async def work(client: Spell, mode: str) -> None:
        nonlocal inside, completed
        async with client.leases.acquire(S, mode=mode, wait=rng.choice([None, 0.001, 30])):
            weight = 100 if mode == "exclusive" else 1
            assert inside + weight <= 100
            inside += weight
            try:
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                completed += 1
            finally:
                inside -= weight

    for _ in range(25):
        tasks = [
            asyncio.create_task(
                work(rng.choice(several), rng.choice(["exclusive", "exclusive", "shared"]))
            )
            for _ in range(8)
        ]
        for _ in range(rng.randrange(30)):
            await asyncio.sleep(0)
            if rng.random() < 0.25:
                rng.choice(tasks).cancel()
        for task in rng.sample(tasks, 3):
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        for result in results:
            if isinstance(result, asyncio.CancelledError):
                cancelled += 1
            else:
                assert result is None or isinstance(result, LeaseUnavailableError), repr(result)
    assert completed > 10, f"seed {seed}"
    assert cancelled > 10, f"seed {seed}"
    await nothing_left(lease_store, *several)
    async with spell.leases.acquire(S, wait=0):
        pass
