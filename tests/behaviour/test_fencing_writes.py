"""Fencing: each kind of write that carries a lease is accepted while it holds, refused after."""

# ruff: noqa: ARG002 - the ways in which a lease ends are called alike

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, S
from fix_state import Dump, Store

from llmspell_dist import Options, Revision, StateClass, StateManager, connect
from llmspell_dist.client import Spell
from llmspell_dist.errors import CrossShardError, StaleFencingTokenError
from llmspell_dist.leases.holding import Lease
from llmspell_dist.scope import Scope

pytestmark = pytest.mark.integration

T = "user:u"
BIG = "x" * 600_000

Write = Callable[[StateManager], Awaitable[Any]]


async def compare_and_set(state: StateManager) -> Any:
    """Change what is there."""
    record = await state.get_record(S, "v")
    assert record is not None
    return await state.compare_and_set(S, "v", "changed", expected=record.revision)


async def transaction(state: StateManager) -> Any:
    """Write all kinds, in two scopes."""
    async with state.transaction() as tx:
        assert await tx.get(S, "v") == "old"
        tx.set(S, "v", "changed")
        tx.delete(S, "gone")
        tx.increment(S, "n", 2)
        tx.append(S, "l", 3)
        tx.merge(S, "m", {"b": 2})
        tx.expire(S, "n", 100)
        tx.set(T, "v", "changed")
    return tx.revision


async def run_transaction(state: StateManager) -> Any:
    """Write by a function."""

    async def change(tx: Any) -> str:
        tx.set(S, "v", await tx.get(S, "v") + "er")
        return "done"

    return await state.run_transaction(change)


WRITES: dict[str, Write] = {
    "set": lambda s: s.set(S, "v", "changed"),
    "set new": lambda s: s.set(S, "new", "changed"),
    "set with ttl": lambda s: s.set(S, "v", "changed", ttl=100),
    "set over a list": lambda s: s.set(S, "l", "changed"),
    "set large": lambda s: s.set(S, "v", BIG),
    "set large and new": lambda s: s.set(S, "new", [BIG, BIG]),
    "set_if_absent": lambda s: s.set_if_absent(S, "new", 1),
    "compare_and_set": compare_and_set,
    "delete": lambda s: s.delete(S, "v"),
    "delete a list": lambda s: s.delete(S, "l"),
    "increment": lambda s: s.increment(S, "n", 5),
    "increment new": lambda s: s.increment(S, "new"),
    "append": lambda s: s.append(S, "l", 3, 4),
    "append to a plain list": lambda s: s.append(S, "plain", 3),
    "append new": lambda s: s.append(S, "new", 1),
    "merge": lambda s: s.merge(S, "m", {"b": 2}, remove=["a"]),
    "merge new": lambda s: s.merge(S, "new", {"b": 2}),
    "update": lambda s: s.update(S, "v", lambda value: value + "er"),
    "expire": lambda s: s.expire(S, "v", 100),
    "persist": lambda s: s.persist(S, "mortal"),
    "set_many": lambda s: s.set_many(S, {"v": "changed", "new": 1}),
    "delete_many": lambda s: s.delete_many(S, ["v", "l", "n"]),
    "transaction": transaction,
    "run_transaction": run_transaction,
    "clear": lambda s: s.clear(S),
    "copy_scope": lambda s: s.copy_scope(S, T),
    "move_scope": lambda s: s.move_scope(S, T),
    "move_scope to it": lambda s: s.move_scope(T, S),
    "another scope": lambda s: s.set(T, "v", "changed"),
} | {
    f"class {state_class}": lambda s, c=state_class: s.set(S, f"of {c}", "changed", state_class=c)
    for state_class in StateClass
    if state_class is not StateClass.SENSITIVE  # it needs a cipher, which is not what is tested
}


async def fill(state: StateManager) -> None:
    """Lay down what the writes change."""
    await state.set_many(S, {"v": "old", "n": 1, "gone": 1, "plain": [1, 2]})
    await state.append(S, "l", 1, 2)
    await state.merge(S, "m", {"a": 1})
    await state.set(S, "mortal", 1, ttl=500)
    await state.set(T, "u", "old")


def changed(before: Dump, after: Dump) -> set[bytes]:
    """Return the keys that differ, without elements that were only laid ready."""
    return {
        key
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
        and not (b":p:" in key and key in after and after[key][2])
    }


# --- how a lease stops to hold --------------------------------------------------------------------


class Ends:
    """Every way in which a lease of a holder that goes on writing can have ended."""

    def __init__(self, other: Spell, lease_store: LeaseStore) -> None:
        self.other = other
        self.store = lease_store

    async def released(self, lease: Lease) -> None:
        await lease.release()

    async def expired(self, lease: Lease) -> None:
        self.store.expire()

    async def broken(self, lease: Lease) -> None:
        await self.other.leases.break_lease(S, reason="test")

    async def taken(self, lease: Lease) -> None:
        self.store.expire()
        await self.other.leases.acquire(S)

    async def released_and_taken(self, lease: Lease) -> None:
        await lease.release()
        await self.other.leases.acquire(S)

    async def lost(self, lease: Lease) -> None:
        self.store.raw("DEL", self.store.key(S))

    async def wrong_type(self, lease: Lease) -> None:
        self.store.raw("DEL", self.store.key(S))
        self.store.raw("SET", self.store.key(S), "something else")

    async def token_tampered(self, lease: Lease) -> None:
        lease.grant.token += 1

    async def owner_tampered(self, lease: Lease) -> None:
        grant = lease.grant
        grant.claim = grant.claim._replace(owner=grant.claim.owner + b"x")

    async def owner_cut(self, lease: Lease) -> None:
        grant = lease.grant
        grant.claim = grant.claim._replace(owner=grant.claim.owner[:-1])

    async def below(self, lease: Lease) -> None:
        """A write with a higher token came first: the scope remembers it."""
        record = self.store.holder()
        assert record is not None
        meta = self.store.raw("HGET", self.store.store.hash_of(S), "$$")
        higher = (lease.token + 7).to_bytes(8, "big")
        self.store.raw("HSET", self.store.store.hash_of(S), "$$", meta[:21] + higher + meta[29:])


ENDS = {
    "released": ("ended", False),
    "expired": ("expired", True),
    "broken": ("ended", False),
    "taken": ("token", True),
    "released_and_taken": ("token", True),
    "lost": ("lost", False),
    "wrong_type": ("ended", False),
    "token_tampered": ("token", True),
    "owner_tampered": ("owner", True),
    "owner_cut": ("owner", True),
    "below": ("below", True),
}
"""By way: why the store says no, and whether it knows a present token."""


# --- accepted and refused -------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_that_carries_a_held_lease_does_what_it_does_without(
    spell: Spell, store: Store, write: str
) -> None:
    """The same result; the log names the token."""
    await fill(spell.state)
    async with spell.leases.acquire(S) as lease:
        logged = len(store.log())
        before = store.dump()
        assert await WRITES[write](lease.state) not in (None, False)
        assert changed(before, store.dump())
        entries = store.log()[logged:]
        assert entries
        assert all(entry.meta["f"] == lease.token for entry in entries)
    touched = {change.scope for entry in entries for change in entry.changes}
    if S in touched and "to" not in write:
        assert store.meta(S).fence == lease.token


@pytest.mark.parametrize("end", ENDS)
async def test_every_write_is_refused_when_the_lease_has_ended(
    spell: Spell, clients: Clients, store: Store, lease_store: LeaseStore, end: str
) -> None:
    """With the facts; nothing at all is changed."""
    (other,) = await clients(1)
    await fill(spell.state)
    lease = await spell.leases.acquire(S, ttl=60, renew=False, on_lost="event")
    given = lease.token
    await getattr(Ends(other, lease_store), end)(lease)
    state = lease.state
    why, known = ENDS[end]
    before = store.dump()
    for name, write in WRITES.items():
        if end == "below" and name in ("another scope", "move_scope to it"):
            continue
        with pytest.raises(StaleFencingTokenError) as caught:
            await write(state)
        error = caught.value
        assert (error.why, error.scope, error.name) == (why, S, "main"), name
        assert error.given == lease.token
        assert (error.current is not None) is known, name
        assert not error.retryable
        assert str(given) in str(error) or end == "token_tampered"
        assert changed(before, store.dump()) == set(), name
    if end == "wrong_type":
        lease_store.raw("DEL", lease_store.key(S))
    if end == "below":
        store.intact = True


async def test_the_error_names_both_tokens(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Whose lease it is now, or how high the scope has seen them."""
    (other,) = await clients(1)
    lease = await spell.leases.acquire(S, on_lost="event")
    lease_store.expire()
    taken = await other.leases.acquire(S)
    with pytest.raises(StaleFencingTokenError) as caught:
        await lease.state.set(S, "v", 1)
    assert (caught.value.given, caught.value.current) == (lease.token, taken.token)
    await taken.state.set(S, "v", 2)
    await taken.release()
    with pytest.raises(StaleFencingTokenError) as caught:
        await lease.state.set(S, "v", 1)
    assert (caught.value.given, caught.value.current) == (lease.token, None)
    assert await spell.state.get(S, "v") == 2


async def test_reading_through_a_lease_that_ended_is_free(spell: Spell) -> None:
    """Only writes are fenced."""
    await fill(spell.state)
    lease = await spell.leases.acquire(S)
    await lease.release()
    assert await lease.state.get(S, "v") == "old"
    assert len(await lease.state.get_all(S)) == 7
    assert await lease.state.history(S, "v")


async def test_a_transaction_that_only_reads_is_a_commit_too(spell: Spell) -> None:
    """What it read is confirmed under the lease, or not at all."""
    await fill(spell.state)
    lease = await spell.leases.acquire(S)
    for held in (True, False):
        tx = lease.state.transaction()
        async with AsyncExitStack() as stack:
            if not held:
                await lease.release()
                stack.enter_context(pytest.raises(StaleFencingTokenError))
            async with tx:
                assert await tx.get(S, "v") == "old"


# --- what a lease covers --------------------------------------------------------------------------


async def test_a_lease_of_another_name_fences_too(spell: Spell, store: Store) -> None:
    """But only the scope's main lease is remembered with it."""
    async with spell.leases.acquire(S, name="turn: 1") as lease:
        await lease.state.set(S, "v", 1)
        assert store.meta(S).fence == 0
        async with spell.leases.acquire(S) as main:
            await main.state.set(S, "v", 2)
            assert store.meta(S).fence == main.token
            await lease.state.set(S, "v", 3)
            assert store.meta(S).fence == main.token
    with pytest.raises(StaleFencingTokenError) as caught:
        await lease.state.set(S, "v", 4)
    assert caught.value.name == "turn: 1"
    assert await spell.state.get(S, "v") == 3


async def test_a_refused_write_raises_no_scope_s_highest_token(
    spell: Spell, store: Store, lease_store: LeaseStore
) -> None:
    """Not even if its first fence holds and only the second does not."""
    await spell.state.set(S, "v", 1)
    async with spell.leases.acquire_all([S, T], on_lost="event") as group:
        stale = [lease for lease in group if str(lease.scope) == T]
        lease_store.raw("DEL", lease_store.key(T))
        with pytest.raises(StaleFencingTokenError):
            await group.state.set(S, "v", 2)
        assert store.meta(S).fence == 0
        for lease in stale:
            lease.grant.end()
    assert await spell.state.get(S, "v") == 1


async def test_fences_of_other_shards_are_refused_and_named(
    url: str, namespace: str, store: Store
) -> None:
    """A commit checks leases of its own shard only, and says so before anything is sent."""
    store.intact = False  # it looks at one shard only
    options = Options(namespace=namespace, shards=8, housekeeping=False)
    async with connect(url, options=options) as spell:
        shard = spell.state._driver.core.keyspace.shard
        lease_scope, far = "agent:a0", ""
        async with spell.leases.acquire(lease_scope) as lease:
            for number in range(1, 50):
                scope = f"agent:a{number}"
                same = shard(Scope.parse(scope)) == shard(Scope.parse(lease_scope))
                if same:
                    await lease.state.set(scope, "v", 1)
                else:
                    far = scope
            with pytest.raises(CrossShardError, match="agent:a0"):
                await lease.state.set(far, "v", 1)


# --- groups of commits ----------------------------------------------------------------------------


async def test_fifty_commits_in_one_group_get_each_its_own_verdict(
    spell: Spell, clients: Clients, store: Store, lease_store: LeaseStore
) -> None:
    """Held, released, expired and none at all, in one script call."""
    (other,) = await clients(1)
    held = await spell.leases.acquire(S)
    reader = await spell.leases.acquire(T, on_lost="event")
    released = await spell.leases.acquire("agent:x")
    expired = await spell.leases.acquire("agent:y", renew=False, on_lost="event")
    await released.release()
    lease_store.expire("agent:y")
    kinds: list[tuple[StateManager, str | None]] = [
        (held.state, None),
        (released.state, "ended"),
        (spell.state, None),
        (expired.state, "expired"),
        (reader.state, None),
    ]
    calls = [
        kinds[i % 5][0].set((S, T)[i % 2], f"k{i}", i, ttl=None if i % 3 else 100)
        for i in range(50)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for i, got in enumerate(outcomes):
        why = kinds[i % 5][1]
        if why is None:
            assert isinstance(got, Revision)
            assert await other.state.get((S, T)[i % 2], f"k{i}") == i
        else:
            assert isinstance(got, StaleFencingTokenError)
            assert got.why == why
            assert await other.state.get((S, T)[i % 2], f"k{i}") is None
    assert len(store.log()) == 30
    assert store.meta(S).fence == held.token
    assert store.meta(T).fence == reader.token
    await held.release()
    await reader.release()


async def test_a_group_sees_what_the_scope_s_highest_token_is_in_its_course(
    spell: Spell, store: Store, lease_store: LeaseStore
) -> None:
    """The first write with a token raises it for the members behind it."""
    lease = await spell.leases.acquire(S)
    await asyncio.gather(*[lease.state.increment(S, "n") for _ in range(20)])
    assert await spell.state.get(S, "n") == 20
    assert store.meta(S).fence == lease.token
    await lease.release()
