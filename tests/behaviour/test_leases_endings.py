"""How leases end when something else goes wrong too: nothing is left, nothing is hidden."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, S, hasten, renewals
from fix_state import Raw, until

import llmspell_dist
from llmspell_dist import blocking
from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    ClosedError,
    DeadlockError,
    LeaseLostError,
    StoreUnavailableError,
    WrongEventLoopError,
)
from llmspell_dist.leases.steps import LeaseSteps
from llmspell_dist.leases.terms import make_terms
from llmspell_dist.redis.commands import ScriptCall

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]

THREE = ["agent:1", "agent:2", "agent:3"]


async def all_free(spell: Spell, scopes: list[str]) -> None:
    """Return when nobody holds or wants any of them."""

    async def free() -> bool:
        found = [await spell.leases.show(scope) for scope in scopes]
        return not any(info.held or info.waiting for info in found)

    await until(free)


def refuse_releases(spell: Spell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every release of a client fail as if the server were away."""
    execute = spell.leases.execute

    def fail(call: Any) -> Any:
        if isinstance(call, ScriptCall) and call.name == "lease_release":
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(StoreUnavailableError("the server", "away"))
            return failed
        return execute(call)

    monkeypatch.setattr(spell.leases, "execute", fail)


# --- several at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_group_gives_all_back_although_its_caller_is_cancelled_there(
    spell: Spell, clients: Clients, by_hand: bool
) -> None:
    """No lease of it is renewed on by nobody."""
    (other,) = await clients(1)
    held, leave = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        if by_hand:
            group = await spell.leases.acquire_all(THREE)
            held.set()
            await leave.wait()
            await group.release()
        else:
            async with spell.leases.acquire_all(THREE):
                held.set()
                await leave.wait()

    task = asyncio.create_task(work())
    await held.wait()
    leave.set()
    await asyncio.sleep(0)  # the releases are on their way
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await all_free(other, THREE)


@pytest.mark.library_only("it breaks what sends to the server")
async def test_a_group_stops_renewing_all_if_the_server_is_away_at_its_end(
    spell: Spell, lease_store: LeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of it, and every lease ends with its time to live."""
    group = await spell.leases.acquire_all(THREE, ttl=60)
    refuse_releases(spell, monkeypatch)
    with pytest.raises(StoreUnavailableError):
        await group.release()
    assert not any(lease.held for lease in group)
    for lease, scope in zip(group, THREE, strict=True):
        lease_store.put_expiry(lease_store.raw.now_ms() + 20_000, scope)
        spell.leases.keeper._look(lease.grant, monotonic())
    records = [lease_store.holder(scope) for scope in THREE]
    for _ in range(10):  # long enough for a renewal, if there were one
        await spell.ping()
    assert [lease_store.holder(scope) for scope in THREE] == records
    for scope in THREE:
        lease_store.expire(scope)
    await all_free(spell, THREE)


@pytest.mark.parametrize("several", [False, True])
async def test_the_error_of_a_block_arrives_although_the_release_fails(
    spell: Spell, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    """What went wrong in the block is what the caller has to see."""
    wanted: Any = spell.leases.acquire_all(THREE) if several else spell.leases.acquire(S)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it comes at the end
        async with wanted:
            refuse_releases(spell, monkeypatch)
            raise ZeroDivisionError
    monkeypatch.undo()


@pytest.mark.library_only("it breaks what sends to the server")
async def test_a_block_without_an_error_hears_that_the_release_failed(
    spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not hidden either."""
    with pytest.raises(StoreUnavailableError):
        async with spell.leases.acquire(S):
            refuse_releases(spell, monkeypatch)
    monkeypatch.undo()


# --- closing --------------------------------------------------------------------------------------


async def test_closing_a_client_dismisses_who_waits(url: str, namespace: str, spell: Spell) -> None:
    """At once, whatever the time to live of the holder; its place in line is free."""
    async with spell.leases.acquire(S, ttl=60):
        other = await llmspell_dist.connect(url, namespace=namespace)
        waiting = asyncio.create_task(other.leases.acquire(S).__aenter__())

        async def in_line() -> bool:
            return (await spell.leases.show(S)).waiting == 1

        await until(in_line)
        await other.close()
        with pytest.raises(ClosedError):
            await asyncio.wait_for(waiting, 5)
        assert (await spell.leases.show(S)).waiting == 0


# --- renewing -------------------------------------------------------------------------------------


async def test_a_renewal_by_hand_is_not_undone_by_one_that_is_under_way(spell: Spell) -> None:
    """The server ends up with the time that was asked for by hand, and the client knows it."""
    async with spell.leases.acquire(S, ttl=20) as lease:
        for _ in range(20):
            hasten(spell)
            await asyncio.gather(asyncio.sleep(0), lease.renew(ttl=60), asyncio.sleep(0))
            holder = (await spell.leases.show(S)).holders[0]
            assert holder.ttl_s == 60
            assert lease.ttl_s == 60
            hasten(spell)
            await lease.renew(ttl=20)

        async def settled() -> bool:
            return (await spell.leases.show(S)).holders[0].ttl_s == 20

        await until(settled)
        assert lease.expires_in_s <= 20


@pytest.mark.needs("process", "config")
async def test_a_full_server_costs_no_holder_its_lease(
    own_server: Callable[..., Any], namespace: str
) -> None:
    """Renewals and releases are allowed; only who does not hold one is refused."""
    server = own_server()
    call = Raw(str(server.socket))
    async with llmspell_dist.connect(server.url, namespace=namespace) as spell:
        lease = await spell.leases.acquire(S, ttl=5, owner="me", reentrant=True)
        inner = await spell.leases.acquire(S, ttl=5, owner="me", reentrant=True)
        reader = await spell.leases.acquire("agent:r", ttl=5, mode="shared")
        call("CONFIG", "SET", "maxmemory", "1")
        assert await lease.renew() == 5
        assert await reader.renew() == 5
        with pytest.raises(StoreUnavailableError):
            await spell.leases.acquire("agent:new", wait=0)
        await inner.release()
        assert (await spell.leases.show(S)).holders[0].holds == 1
        await lease.release()
        await reader.release()
        call("CONFIG", "SET", "maxmemory", "0")
        await all_free(spell, [S, "agent:r"])
    call.close()


# --- those who are gone ---------------------------------------------------------------------------


@pytest.mark.library_only("it sends scripts of its own")
async def test_a_writer_that_is_gone_does_not_lock_readers_out(spell: Spell) -> None:
    """Its place is before theirs, and nobody stands on it."""
    async with spell.leases.acquire(S, mode="shared", owner="first"):
        ghost = LeaseSteps(spell.state._driver.core)
        claim = ghost.claim(ghost.target(S, "main"), make_terms(), "gone")
        place = ghost.read_acquire(
            claim, await spell.leases.execute(ghost.acquire_call(claim, wait=True)), 0.0
        )
        assert place.place == 0  # type: ignore[union-attr]
        async with spell.leases.acquire(S, mode="shared", owner="second", wait=5):
            assert len((await spell.leases.show(S)).holders) == 2


async def test_a_long_circle_is_refused(spell: Spell) -> None:
    """However many wait for one another."""
    count = 70
    scopes = [f"agent:{number}" for number in range(count)]
    for number, scope in enumerate(scopes):
        await spell.leases.acquire(scope, owner=f"o{number}")
    waiting = [
        asyncio.create_task(spell.leases.acquire(scopes[n + 1], owner=f"o{n}").__aenter__())
        for n in range(count - 1)
    ]

    async def all_wait() -> bool:
        return len((await spell.leases.graph()).edges) == count - 1

    await until(all_wait)
    with pytest.raises(DeadlockError) as caught:
        await spell.leases.acquire(scopes[0], owner=f"o{count - 1}")
    assert len(caught.value.cycle) == count
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


# --- who is stopped -------------------------------------------------------------------------------


async def test_the_task_that_enters_the_block_is_the_one_that_is_stopped(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Not the one that acquired the lease, as `asyncio.wait_for` makes one of its own."""
    lease = await asyncio.wait_for(spell.leases.acquire(S).__aenter__(), 5)
    with pytest.raises(LeaseLostError):  # noqa: PT012 - the loss comes at its end
        async with lease:
            lease_store.expire()
            hasten(spell)
            await asyncio.wait_for(asyncio.Event().wait(), 10)


async def test_a_block_is_not_entered_with_a_lost_lease(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Nobody would be stopped any more."""
    lease = await spell.leases.acquire(S, on_lost="event")
    lease_store.expire()
    hasten(spell)
    await lease.lost.wait()
    with pytest.raises(LeaseLostError):
        async with lease:
            raise AssertionError("entered")


# --- threads --------------------------------------------------------------------------------------


def test_an_interrupt_at_the_moment_of_the_grant_leaves_nothing(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller has no lease to give back, so nobody may hold it."""
    with blocking.connect(url, namespace=namespace) as spell:
        keep = spell.leases.keep

        def interrupted(grant: Any) -> None:
            keep(grant)
            raise KeyboardInterrupt

        monkeypatch.setattr(spell.leases, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spell.leases.acquire(S)
        monkeypatch.undo()
        with spell.leases.acquire(S, wait=0):
            pass


def test_a_function_that_is_called_at_the_loss_may_wait_for_a_lease(
    url: str, namespace: str, lease_store: LeaseStore
) -> None:
    """It has a thread of its own: the others' leases are renewed meanwhile."""
    wanted = "agent:busy"
    with blocking.connect(url, namespace=namespace) as spell:
        begun, done = threading.Event(), threading.Event()

        def again(_: Any) -> None:
            begun.set()
            spell.leases.acquire(wanted, owner="again").release()
            done.set()

        with spell.leases.acquire(wanted, ttl=60) as busy:
            spell.leases.acquire(S, on_lost=again)
            lease_store.expire()
            hasten(spell)
            assert begun.wait(10)
            asyncio.run(until(lambda: lease_store.waiting(wanted) == 1))
            asyncio.run(renewals(lease_store, spell, 2, scope=wanted))
            assert not done.is_set()
            busy.check()
            busy.state.set(wanted, "v", 1)
        assert done.wait(10)


def test_the_thread_in_the_background_never_waits_for_itself(url: str, namespace: str) -> None:
    """An error is better than a client that stands still."""
    with blocking.connect(url, namespace=namespace) as spell:
        background = spell._backstage._background
        caught: list[BaseException] = []
        asked = threading.Event()

        async def nothing() -> None:
            """Never run."""

        def ask() -> None:
            try:
                background.run(nothing())
            except WrongEventLoopError as error:
                caught.append(error)
            asked.set()

        background.call(ask)
        assert asked.wait(10)
        assert len(caught) == 1


@pytest.mark.parametrize("turns", range(8))
async def test_closing_a_client_gives_back_what_is_being_granted(
    url: str, namespace: str, spell: Spell, turns: int
) -> None:
    """Nobody is left with a lease of a closed client, wherever its request was by then."""
    other = await llmspell_dist.connect(url, namespace=namespace)
    asking = asyncio.create_task(other.leases.acquire(S, ttl=60).__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    await other.close()
    await asyncio.gather(asking, return_exceptions=True)
    assert not (await spell.leases.show(S)).held


async def test_closing_a_client_cancels_nobody_who_begins_to_wait(
    url: str, namespace: str, spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that nobody cancelled gets no CancelledError, also while its client subscribes."""
    async with spell.leases.acquire(S, ttl=60):
        other = await llmspell_dist.connect(url, namespace=namespace)
        subscribing = asyncio.Event()

        async def never_heard(*_: object, **__: object) -> None:
            subscribing.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(other._hub, "subscribe", never_heard)
        waiting = asyncio.create_task(other.leases.acquire(S).__aenter__())
        await subscribing.wait()
        await other.close()
        with pytest.raises(ClosedError, match="closed while it waited"):
            await asyncio.wait_for(waiting, 5)
        assert (await spell.leases.show(S)).waiting == 0
