"""Whole scopes: cleared in one step, copied and moved with everything that belongs to them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from fix_state import Store, sweep_all, until

from llmspell_dist import (
    ConflictError,
    CrossShardError,
    InvalidArgumentError,
    Options,
    Scope,
    StateClass,
    StateManager,
    connect,
)
from llmspell_dist.client import Spell
from llmspell_dist.keys import KeySpace

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S, T = "agent:alice", "agent:bob"


async def fill(state: StateManager, scope: str) -> dict[str, Any]:
    """Every kind, some with a TTL."""
    await state.set(scope, "v", {"a": 1}, ttl=1000, schema_version=5)
    await state.set(scope, "n", 2**53 + 1, state_class=StateClass.TRUSTED)
    await state.set(scope, "big", "x" * 600_000)
    await state.append(scope, "l", 1, "two", ttl=2000)
    await state.merge(scope, "m", {"f": [1], 2: None})
    await state.set(scope, "bulk", "b" * 100, state_class=StateClass.BULK)
    return await state.get_all(scope)


@pytest.mark.parametrize("move", [False, True])
async def test_everything_that_belongs_to_a_key_goes_along(
    state: StateManager, store: Store, move: bool
) -> None:
    """Value, kind, class, schema version, created and expiry."""
    values = await fill(state, S)
    before = {key: await state.get_record(S, key) for key in values}
    transfer = state.move_scope if move else state.copy_scope
    assert await transfer(S, T) == len(values)
    assert await state.get_all(T) == values
    assert await state.get_all(S) == ({} if move else values)
    assert await state.count(S) == (0 if move else len(values))
    for key, old in before.items():
        new = await state.get_record(T, key)
        assert new is not None
        assert old is not None
        assert (new.kind, new.state_class, new.schema_version, new.created, new.expires) == (
            old.kind, old.state_class, old.schema_version, old.created, old.expires,
        )  # fmt: skip
        assert new.revision > old.revision
    store.check()
    # The two no longer have anything in common.
    await state.append(T, "l", 3)
    await state.merge(T, "m", {}, remove=["f"])
    await state.delete(T, "big")
    if not move:
        assert await state.get_all(S) == values
    assert await state.get(T, "l") == [1, "two", 3]


@pytest.mark.parametrize("move", [False, True])
async def test_a_transfer_goes_over_what_is_there_and_leaves_the_rest(
    state: StateManager, store: Store, move: bool
) -> None:
    """Kinds may differ; what was replaced leaves nothing behind."""
    values = await fill(state, S)
    await state.set(T, "l", "other", ttl=50)
    await state.append(T, "v", 1)
    await state.set(T, "m", "y" * 600_000)
    await state.merge(T, "n", {"a": 1})
    await state.set(T, "stays", 1)
    transfer = state.move_scope if move else state.copy_scope
    assert await transfer(S, T) == len(values)
    assert await state.get_all(T) == values | {"stays": 1}
    record = await state.get_record(T, "l")
    assert record is not None
    assert record.expires is not None
    assert record.expires - record.created > timedelta(seconds=1900)
    store.check()
    assert [c.op for c in await state.history(T, "v")] == ["set", "append"]
    assert [c.op for c in await state.history(T, "m")] == ["set", "set"]
    newest = (await state.history(S, "l"))[0]
    assert newest.op == ("delete" if move else "append")


async def test_a_transfer_of_nothing_is_nothing(state: StateManager, store: Store) -> None:
    """Of a scope that never was, and of an empty one."""
    assert await state.copy_scope(S, T) == 0
    await state.set(S, "k", 1)
    await state.delete(S, "k")
    before = store.dump()
    assert await state.copy_scope(S, T) == 0
    assert await state.move_scope(S, T) == 0
    assert store.dump() == before
    for transfer in (state.copy_scope, state.move_scope):
        with pytest.raises(InvalidArgumentError, match="target"):
            await transfer(S, Scope.agent("alice"))


@pytest.mark.parametrize("move", [False, True])
async def test_more_than_400_keys_go_in_batches(
    state: StateManager, store: Store, move: bool
) -> None:
    """All of them, each with its elements; called again there is nothing left to do."""
    for start in range(0, 900, 450):
        await state.set_many(S, {f"k{i}": i for i in range(start, start + 450)})
    await asyncio.gather(*[state.append(S, f"l{i}", i, i) for i in range(30)])
    transfer = state.move_scope if move else state.copy_scope
    assert await transfer(S, T) == 930
    assert await state.count(T) == 930
    assert await state.get_slice(T, "l7") == [7, 7]
    assert await state.count(S) == (0 if move else 930)
    store.check()
    assert await transfer(S, T) == (0 if move else 930)


async def test_large_records_are_copied_in_entries_of_bounded_size(
    state: StateManager, store: Store
) -> None:
    """Values in the record stand in the log too; one entry holds at most 8 MiB of them."""
    await asyncio.gather(*[state.set(S, f"k{i}", "x" * 500_000) for i in range(20)])
    logged = len(store.log())
    assert await state.copy_scope(S, T) == 20
    entries = store.log()[logged:]
    assert len(entries) == 2
    for entry in entries:
        assert sum(len(change.payload or b"") for change in entry.changes) <= 8 * 1024 * 1024
    assert await state.count(T) == 20


async def test_a_move_loses_no_concurrent_write(state: StateManager) -> None:
    """What is written to the source meanwhile is in one of the two at the end."""
    await state.set_many(S, {f"k{i}": 0 for i in range(100)})

    async def write() -> None:
        for i in range(100):
            await state.set(S, f"new{i}", i)

    await asyncio.gather(write(), state.move_scope(S, T))
    both = await state.get_all(S) | await state.get_all(T)
    assert both == {f"k{i}": 0 for i in range(100)} | {f"new{i}": i for i in range(100)}


@pytest.mark.library_only("over HTTP a reader is too slow to look in between")
async def test_a_large_move_has_every_key_in_exactly_one_scope(state: StateManager) -> None:
    """At any moment that a reader looks."""
    for start in range(0, 1200, 400):
        await state.set_many(S, {f"k{i}": i for i in range(start, start + 400)})
    moving = asyncio.ensure_future(state.move_scope(S, T))
    looked = 0
    keys = [f"k{i}" for i in range(0, 1200, 100)]
    while not moving.done():
        try:
            # Reads that nobody disturbed are of one moment.
            async with state.transaction() as tx:
                found = [*await tx.get_many(S, keys), *await tx.get_many(T, keys)]
        except ConflictError:
            continue
        assert sorted(found) == sorted(keys)
        looked += 1
    assert await moving == 1200
    assert looked > 0
    assert await state.count(T) == 1200


async def test_scopes_of_different_shards_cannot_be_copied(
    url: str, namespace: str, store: Store
) -> None:
    """The error names them, and nothing is changed."""
    store.space = KeySpace(namespace, 4)
    async with connect(url, options=Options(namespace=namespace, shards=4)) as spell:
        scopes = [f"agent:{i}" for i in range(8)]
        core = spell.state._driver.core
        shards = {scope: core.scope_key(scope).shard for scope in scopes}
        first = scopes[0]
        other = next(scope for scope in scopes if shards[scope] != shards[first])
        await spell.state.set(first, "k", 1)
        with pytest.raises(CrossShardError) as caught:
            await spell.state.copy_scope(first, other)
        assert set(caught.value.scopes) == {first, other}
        assert await spell.state.count(other) == 0
        # A workflow lies with its steps.
        await spell.state.set("workflow:w", "k", 1)
        assert await spell.state.copy_scope("workflow:w", "workflow:w/step:s") == 1


async def test_a_clear_removes_everything_in_one_step(
    state: StateManager, spell: Spell, store: Store
) -> None:
    """However much; the elements go with the next sweep, and the scope can be used at once."""
    values = await fill(state, S)
    await state.set_many(S, {f"k{i}": i for i in range(900)})
    assert await state.clear(S) == 900 + len(values)
    assert await state.count(S) == 0
    assert await state.get_all(S) == {}
    assert [str(scope) async for scope in state.scopes()] == []
    store.check()
    await state.append(S, "l", "new")
    await state.set(S, "v", "new", ttl=100)
    store.check()
    assert len(store.elements()) == 4
    await sweep_all(spell)
    assert len(store.elements()) == 1
    assert not [key for key in store.all_keys() if key.endswith(b":trash")]
    assert await state.get_all(S) == {"l": ["new"], "v": "new"}
    assert await state.clear(S) == 2
    assert await state.clear("agent:never") == 0
    (change,) = [c for c in await state.history(S, "k5") if c.op == "clear"][:1]
    assert not change.has_value


async def test_a_scope_cleared_many_times_leaves_nothing(
    state: StateManager, spell: Spell, store: Store
) -> None:
    """Each clear has a trash of its own."""
    for i in range(5):
        await state.append(S, "l", i)
        await state.merge(S, "m", {"a": i})
        await state.clear(S)
    store.check()
    await sweep_all(spell)
    assert store.elements() == []
    assert [key for key in store.all_keys() if b":g" in key] == []


@pytest.mark.library_only("requests of several tasks take several connections, in no order")
async def test_clear_and_writes_in_one_group_stand_in_order(state: StateManager) -> None:
    """What came before is gone, what came after is there."""
    *_, cleared, _, _ = await asyncio.gather(
        state.set(S, "a", 1),
        state.append(S, "l", 1),
        state.set(S, "t", 1, ttl=100),
        state.clear(S),
        state.set(S, "b", 2),
        state.append(S, "l", 2),
    )
    assert cleared == 3
    assert await state.get_all(S) == {"b": 2, "l": [2]}


async def test_an_empty_scope_is_forgotten_once_nobody_can_compare_with_it(
    state: StateManager, spell: Spell, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then its last revision stays."""
    from llmspell_dist.redis.scripts import Script, load_script

    await state.set(S, "k", 1)
    await state.delete(S, "k")
    await sweep_all(spell)
    assert store.meta(S).revision is not None
    # The same script with a day of no time, and a log that no longer reaches back.
    script = load_script("sweep")
    source = script.body.decode().replace("EMPTY_SCOPE_MS = 86400000", "EMPTY_SCOPE_MS = 0")
    hasty = Script.from_source("sweep", source)
    monkeypatch.setattr("llmspell_dist.state.housekeeping.load_script", lambda _: hasty)
    due = store.space.due("0")
    store.raw("ZADD", due, 0, S)
    await sweep_all(spell)
    assert store.meta(S).revision is not None
    changed = store.meta(S).revision
    assert changed is not None
    await until(lambda: store.raw.now_ms() > changed.ms + 1)
    store.raw("XTRIM", store.space.log("0"), "MAXLEN", 0)
    store.raw("ZADD", due, 0, S)
    await sweep_all(spell)
    assert store.hash_of(S) not in store.all_keys()
    assert store.raw("ZSCORE", due, S) is None
    assert await state.get(S, "k") is None
    assert await state.set(S, "k", 2) > changed


async def test_a_copy_of_a_copy_is_a_value_of_its_own(state: StateManager) -> None:
    """As often as one likes."""
    there = await fill(state, S)
    for source, target in ((S, T), (T, "agent:carol"), ("agent:carol", "agent:dave")):
        assert await state.copy_scope(source, target) == len(there)
        assert await state.get_all(target) == there
    await state.append("agent:carol", "l", 3)
    for scope in (S, T, "agent:dave"):
        assert await state.get(scope, "l") == [1, "two"]
