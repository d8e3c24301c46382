"""A scope can demand a lease for every write; the store sees to it, whoever writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, S
from fix_state import Expiring, Store, sweep_all

from llmspell_dist import StateManager
from llmspell_dist.client import Spell
from llmspell_dist.errors import LeaseRequiredError, StaleFencingTokenError

pytestmark = pytest.mark.integration
T = "user:u"


async def transaction(state: StateManager) -> Any:
    """Write there and elsewhere, in one commit."""
    async with state.transaction() as tx:
        tx.set(T, "v", 1)
        tx.increment(S, "n")


async def fill(state: StateManager) -> None:
    """Lay down what the writes change."""
    await state.set_many(S, {"v": "old", "n": 1})
    await state.append(S, "l", 1, 2)
    await state.merge(S, "m", {"a": 1})
    await state.set(S, "mortal", 1, ttl=500)
    await state.set(T, "u", 1)


WRITES: dict[str, Callable[[StateManager], Awaitable[Any]]] = {
    "set": lambda s: s.set(S, "v", 1),
    "set new": lambda s: s.set(S, "new", 1),
    "set large": lambda s: s.set(S, "v", "x" * 600_000),
    "set_if_absent": lambda s: s.set_if_absent(S, "new", 1),
    "compare_and_set": lambda s: s.compare_and_set(S, "new", 1, expected=None),
    "delete": lambda s: s.delete(S, "v"),
    "increment": lambda s: s.increment(S, "n"),
    "append": lambda s: s.append(S, "l", 3),
    "merge": lambda s: s.merge(S, "m", {"b": 2}),
    "update": lambda s: s.update(S, "v", lambda _: "new"),
    "expire": lambda s: s.expire(S, "v", 100),
    "persist": lambda s: s.persist(S, "mortal"),
    "set_many": lambda s: s.set_many(S, {"v": 1, "w": 2}),
    "delete_many": lambda s: s.delete_many(S, ["v", "n"]),
    "transaction": transaction,
    "clear": lambda s: s.clear(S),
    "copy into it": lambda s: s.copy_scope(T, S),
    "move into it": lambda s: s.move_scope(T, S),
    "move out of it": lambda s: s.move_scope(S, T),
}


async def test_every_write_without_the_lease_is_refused(
    spell: Spell, clients: Clients, store: Store
) -> None:
    """From this client and from others, which know nothing of it; nothing is changed."""
    (other,) = await clients(1)
    await fill(spell.state)
    assert await spell.leases.require(S) is True
    before = {
        key: value for key, value in store.dump().items() if not value[2]
    }  # without what is only laid ready
    for state in (spell.state, other.state):
        for name, write in WRITES.items():
            with pytest.raises(LeaseRequiredError) as caught:
                await write(state)
            assert (caught.value.scope, caught.value.name) == (S, "main"), name
            after = {key: value for key, value in store.dump().items() if not value[2]}
            assert after == before, name


@pytest.mark.parametrize("write", WRITES)
async def test_every_write_with_the_lease_is_accepted(
    spell: Spell, clients: Clients, write: str
) -> None:
    """From whichever client holds it."""
    (other,) = await clients(1)
    await fill(spell.state)
    await spell.leases.require(S)
    async with other.leases.acquire(S) as lease:
        await WRITES[write](lease.state)


async def test_a_lease_that_has_ended_or_another_one_does_not_do(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Another name, another scope, a reader's; and a stale one is called stale."""
    await spell.leases.require(S, name="turn")
    for scope, name in ((S, "main"), (T, "turn")):
        async with spell.leases.acquire(scope, name=name) as lease:
            with pytest.raises(LeaseRequiredError) as caught:
                await lease.state.set(S, "v", 1)
            assert caught.value.name == "turn"
    async with spell.leases.acquire(S, name="turn", on_lost="event") as lease:
        await lease.state.set(S, "v", 1)
        await lease.release()
        with pytest.raises(StaleFencingTokenError):
            await lease.state.set(S, "v", 2)
    reader = await spell.leases.acquire(S, name="turn", mode="shared")
    with pytest.raises(StaleFencingTokenError):
        await reader.state.set(S, "v", 2)
    await reader.release()
    assert await spell.state.get(S, "v") == 1


async def test_reading_and_copying_out_are_free(spell: Spell) -> None:
    """They change nothing in it."""
    await fill(spell.state)
    await spell.leases.require(S)
    assert await spell.state.get(S, "v") == "old"
    assert (await spell.state.get_all(S))["l"] == [1, 2]
    assert await spell.state.count(S) == 5
    assert {scope.text async for scope in spell.state.scopes()} == {S, T}
    assert await spell.state.copy_scope(S, T) == 5
    assert await spell.state.get(T, "v") == "old"
    async with spell.state.transaction() as tx:
        assert await tx.get(S, "v") == "old"
        tx.set(T, "read", 1)


async def test_keys_expire_all_the_same(spell: Spell, expiring: Expiring, store: Store) -> None:
    """To the readers' eyes, and in the sweeper's hands."""
    async with spell.leases.acquire(S) as lease:
        assert await spell.leases.require(S, lease=lease)
        await lease.state.set_many(S, {"a": 1, "b": 2}, ttl=0.001)
        await lease.state.set(S, "stays", 1)
    await expiring.gone(S, "a", "b")
    assert await spell.state.get(S, "a") is None
    assert await sweep_all(spell) == 2
    assert await spell.state.get_all(S) == {"stays": 1}
    assert store.meta(S).count == 1
    with pytest.raises(LeaseRequiredError):
        await spell.state.set(S, "a", 1)


async def test_clearing_the_scope_keeps_the_demand(spell: Spell) -> None:
    """And so does deleting its last key."""
    await fill(spell.state)
    await spell.leases.require(S)
    async with spell.leases.acquire(S) as lease:
        assert await lease.state.clear(S) == 5
        await lease.state.set(S, "v", 1)
        await lease.state.delete(S, "v")
    with pytest.raises(LeaseRequiredError):
        await spell.state.set(S, "v", 1)


async def test_an_empty_scope_with_a_demand_is_not_forgotten(spell: Spell, store: Store) -> None:
    """The sweeper forgets empty scopes after a day; one with a demand stays."""
    for scope in (S, T):
        async with spell.leases.acquire(scope) as lease:
            await lease.state.set(scope, "v", 1)
            await lease.state.delete(scope, "v")
            if scope == S:
                await spell.leases.require(S, lease=lease)
    store.raw("DEL", store.space.log("0"))  # trimmed since
    two_days_ago = store.raw.now_ms() - 2 * 86_400_000
    for scope in (S, T):
        meta = store.raw("HGET", store.hash_of(scope), "$$")
        old = meta[:1] + two_days_ago.to_bytes(6, "big") + meta[7:]
        store.raw("HSET", store.hash_of(scope), "$$", old)
        store.raw("ZADD", store.space.due("0"), 1, scope)
    await sweep_all(spell)
    assert store.raw("EXISTS", store.hash_of(T)) == 0
    assert store.raw("EXISTS", store.hash_of(S)) == 1
    with pytest.raises(LeaseRequiredError):
        await spell.state.set(S, "v", 1)


async def test_a_demand_on_a_scope_that_has_nothing_yet(spell: Spell) -> None:
    """It can be made before the first key."""
    assert await spell.leases.require(S)
    with pytest.raises(LeaseRequiredError):
        await spell.state.set(S, "v", 1)
    async with spell.leases.acquire(S) as lease:
        await lease.state.set(S, "v", 1)


async def test_the_demand_can_be_lifted_and_changed_by_who_holds_the_lease(
    spell: Spell, store: Store
) -> None:
    """Each is a commit in the log; to say again what is so already changes nothing."""
    await spell.leases.require(S)
    async with spell.leases.acquire(S) as lease:
        logged = len(store.log())
        assert await spell.leases.require(S, lease=lease) is False
        assert len(store.log()) == logged
        assert await spell.leases.require(S, name="a turn:1", lease=lease) is True
        assert store.log()[-1].meta["f"] == lease.token
        with pytest.raises(LeaseRequiredError) as caught:
            await lease.state.set(S, "v", 1)
        assert caught.value.name == "a turn:1"
    async with spell.leases.acquire(S, name="a turn:1") as turn:
        await turn.state.set(S, "v", 1)
        assert await spell.leases.unrequire(S, lease=turn) is True
        assert await spell.leases.unrequire(S, lease=turn) is False
    await spell.state.set(S, "v", 2)


async def test_nobody_without_the_lease_can_lift_or_change_it(spell: Spell) -> None:
    """That would be a way around."""
    await spell.leases.require(S)
    async with spell.leases.acquire(S, name="turn") as wrong:
        with pytest.raises(LeaseRequiredError):
            await spell.leases.unrequire(S, lease=wrong)
        with pytest.raises(LeaseRequiredError):
            await spell.leases.require(S, name="turn", lease=wrong)
    with pytest.raises(LeaseRequiredError):
        await spell.leases.require(S, name="turn")
    async with spell.leases.acquire(S) as stale:
        pass
    with pytest.raises(StaleFencingTokenError):
        await spell.leases.unrequire(S, lease=stale)
    with pytest.raises(LeaseRequiredError):
        await spell.state.set(S, "v", 1)


async def test_a_large_move_out_of_it_needs_the_lease(spell: Spell) -> None:
    """Though it goes in several batches."""
    await spell.state.set_many(S, {f"k{i}": i for i in range(450)})
    await spell.leases.require(S)
    with pytest.raises(LeaseRequiredError):
        await spell.state.move_scope(S, T)
    assert await spell.state.count(S) == 450
    async with spell.leases.acquire(S) as lease:
        assert await lease.state.move_scope(S, T) == 450
    assert await spell.state.count(T) == 450


async def test_two_scopes_that_demand_their_leases_are_written_with_both(spell: Spell) -> None:
    """A group's state carries them; one alone is not enough for the commit."""
    for scope in (S, T):
        await spell.leases.require(scope)
    async with spell.leases.acquire_all([S, T]) as group:
        for state, refused in (
            (group[0].state, True),
            (group[1].state, True),
            (group.state, False),
        ):
            try:
                async with state.transaction() as tx:
                    tx.set(S, "v", 1)
                    tx.set(T, "v", 1)
            except LeaseRequiredError:
                assert refused
                assert await spell.state.count(S) == await spell.state.count(T) == 0
            else:
                assert not refused
    assert await spell.state.get(S, "v") == await spell.state.get(T, "v") == 1
