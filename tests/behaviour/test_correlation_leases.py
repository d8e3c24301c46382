"""Leases in a correlation: what became of each stands in its timeline; outside it costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fix_leases import LeaseStore, S
from fix_state import Store

from llmspell_dist.blocking import connect as connect_blocking
from llmspell_dist.client import Spell
from llmspell_dist.context import context
from llmspell_dist.correlation import EntryKind, Timeline, TimelineEntry, correlation
from llmspell_dist.errors import LeaseLostError

pytestmark = pytest.mark.integration


async def noted(spell: Spell, run: str, *types: str) -> Timeline:
    """The timeline, as soon as these lease events stand in it: they are sent, not waited for."""
    found: list[Timeline] = []

    async def there() -> bool:
        found.append(await spell.correlation.timeline(run))
        return [one.type for one in found[-1] if one.kind is EntryKind.LEASE] == list(types)

    await waited(there)
    return found[-1]


async def waited(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - each time is a round trip
            await asyncio.sleep(0)


async def test_acquired_and_released_stand_in_the_timeline(spell: Spell) -> None:
    """With scope, owner, actor, token and cause; commits made under it beside them."""
    with correlation("run", actor="ann"), context(causation_id="event-1"):
        async with spell.leases.acquire(S, owner="worker") as lease:
            await lease.state.set(S, "k", 1)
            info = await spell.leases.show(S)
    timeline = await noted(spell, "run", "lease.acquired", "lease.released")
    assert [one.type for one in timeline] == ["lease.acquired", "state.set", "lease.released"]
    taken = timeline[0].detail
    assert (taken.scope, taken.name, taken.token, taken.owner, taken.mode) == (
        S,
        "main",
        lease.token,
        "worker",
        "exclusive",
    )
    assert (timeline[0].source, timeline[0].target, timeline[0].causation_id) == (
        "ann",
        S,
        "event-1",
    )
    assert info.holders[0].correlation_id == "run"


async def test_leases_and_commits_keep_the_order_in_which_they_happened(spell: Spell) -> None:
    """Also where they fall into one millisecond of the server's clock."""
    for number in range(50):
        with correlation(f"run-{number}"):
            await spell.state.set(S, "before", number)
            async with spell.leases.acquire(S) as lease:
                await lease.state.set(S, "within", number)
            await spell.state.set(S, "after", number)
        timeline = await noted(spell, f"run-{number}", "lease.acquired", "lease.released")
        assert [happened(one) for one in timeline] == [
            *("before", "lease.acquired", "within", "lease.released", "after")
        ]


def happened(one: TimelineEntry) -> str:
    """The key of a commit, or what became of a lease."""
    return one.type if one.kind is EntryKind.LEASE else str(one.detail.changes[0].key)


async def test_leases_outside_of_a_correlation_are_nowhere_noted(
    spell: Spell, store: Store
) -> None:
    """Nor does their holder name one."""
    async with spell.leases.acquire(S):
        info = await spell.leases.show(S)
    assert info.holders[0].correlation_id is None
    assert not [key for key in store.all_keys() if b":corr" in key]


async def test_a_broken_lease_stands_with_its_holder_and_with_who_broke_it(spell: Spell) -> None:
    """With the reason, in both correlations; its writes in between are its own."""
    with correlation("holder"):
        lease = await spell.leases.acquire(S, on_lost="event")
    with correlation("breaker", actor="admin"):
        await spell.leases.break_lease(S, reason="it hangs")
    await lease.lost.wait()
    mine = await noted(spell, "holder", "lease.acquired", "lease.broken")
    assert "it hangs" in mine[1].detail.reason
    theirs = await noted(spell, "breaker", "lease.broken")
    assert (theirs[0].source, theirs[0].detail.reason) == ("admin", "it hangs")
    assert theirs[0].id == mine[1].id


async def test_a_lost_lease_says_so(spell: Spell, lease_store: LeaseStore) -> None:
    """As soon as its holder knows."""
    with pytest.raises(LeaseLostError), correlation("run"):
        async with spell.leases.acquire(S, on_lost="event"):
            lease_store.expire(S)
    timeline = await noted(spell, "run", "lease.acquired", "lease.lost")
    assert timeline[1].detail.reason


async def test_what_is_held_when_the_client_closes_is_noted_as_released(
    spell: Spell, url: str, namespace: str
) -> None:
    """Of both surfaces."""
    from llmspell_dist import connect

    async with connect(url, namespace=namespace) as other:
        with correlation("run"):
            await other.leases.acquire(S)
    await noted(spell, "run", "lease.acquired", "lease.released")
    await asyncio.to_thread(_held_to_the_end, url, namespace)
    await noted(spell, "blocking", "lease.acquired", "lease.released")


def _held_to_the_end(url: str, namespace: str) -> None:
    with connect_blocking(url, namespace=namespace) as spell, correlation("blocking"):
        spell.leases.acquire(S)


async def test_leases_of_threads_are_noted_too(spell: Spell, url: str, namespace: str) -> None:
    """In the background: the thread waits for nothing more."""

    def work() -> int:
        with (
            connect_blocking(url, namespace=namespace) as blocking,
            correlation("run"),
            blocking.leases.acquire(S) as lease,
        ):
            return lease.token

    token = await asyncio.to_thread(work)
    timeline = await noted(spell, "run", "lease.acquired", "lease.released")
    assert {one.detail.token for one in timeline} == {token}


async def test_what_a_thread_writes_under_a_lease_stands_behind_the_grant(
    spell: Spell, url: str, namespace: str
) -> None:
    """Though the background notes it when the thread has gone on."""

    def work() -> None:
        with connect_blocking(url, namespace=namespace) as blocking:
            for number in range(50):
                with correlation(f"run-{number}"), blocking.leases.acquire(S) as lease:
                    lease.state.set(S, "within", number)

    await asyncio.to_thread(work)
    for number in range(50):
        timeline = await noted(spell, f"run-{number}", "lease.acquired", "lease.released")
        assert [happened(one) for one in timeline] == [
            *("lease.acquired", "within", "lease.released")
        ]


async def test_a_note_that_fails_costs_the_lease_nothing(spell: Spell, store: Store) -> None:
    """The stream is of another type."""
    store.raw("SET", store.space.correlation("0", "run"), "x")
    with correlation("run"):
        async with spell.leases.acquire(S) as lease:
            assert lease.held
    assert not (await spell.leases.show(S)).held
