"""Transactions: what was read must still hold, and everything is written together or nothing."""

# ruff: noqa: PT012 - a transaction is a block, and what it raises comes at its end

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_state import Expiring, Store

from llmspell_dist import (
    CodecError,
    ConflictError,
    CrossShardError,
    InvalidArgumentError,
    LimitError,
    Options,
    Revision,
    StateClass,
    StateManager,
    Transaction,
    WrongKindError,
    connect,
    context,
)
from llmspell_dist.errors import NumberOverflowError
from llmspell_dist.keys import KeySpace

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S, T = "agent:alice", "user:u"


async def test_all_writes_are_one_commit_over_several_scopes(
    state: StateManager, store: Store
) -> None:
    """One revision, one log entry, whatever the kinds."""
    await state.set(T, "gone", 1)
    await state.set(S, "n", 5)
    logged = len(store.log())
    with context(actor="me", correlation_id="run-1"):
        async with state.transaction() as tx:
            tx.set(S, "v", "x", ttl=100, schema_version=3, state_class=StateClass.TRUSTED)
            tx.set_if_absent(T, "new", [1])
            tx.delete(T, "gone")
            tx.increment(S, "n", 2)
            tx.append("global", "l", 1, 2)
            tx.merge("global", "m", {"a": 1})
            tx.set("global", "big", "y" * 600_000)
            tx.expire(S, "n", 100)
    (entry,) = store.log()[logged:]
    assert entry.revision == tx.revision
    assert len(entry.changes) == 7
    assert entry.meta == {"a": "me", "c": "run-1"}
    assert await state.get_all(S) == {"v": "x", "n": 7}
    assert await state.get_all(T) == {"new": [1]}
    assert await state.get_all("global") == {"l": [1, 2], "m": {"a": 1}, "big": "y" * 600_000}
    for scope, key in ((S, "v"), (S, "n"), (T, "new"), ("global", "l"), ("global", "big")):
        record = await state.get_record(scope, key)
        assert record is not None
        assert record.revision == tx.revision
        assert (record.expires is not None) == (scope == S)


async def test_a_transaction_sees_its_own_changes_and_others_do_not(state: StateManager) -> None:
    """Until it ends."""
    await state.set_many(S, {"v": 1, "l": [1], "m": {"a": 1}, "n": 5, "gone": 1})
    async with state.transaction() as tx:
        tx.set(S, "v", "mine")
        tx.append(S, "l", 2)
        tx.merge(S, "m", {"b": 2}, remove=["a"])
        tx.increment(S, "n", 1.5)
        tx.delete(S, "gone")
        tx.set_if_absent(S, "new", None)
        tx.expire(S, "v", 100)
        mine = {"v": "mine", "l": [1, 2], "m": {"b": 2}, "n": 6.5, "new": None}
        assert await tx.get_many(S, [*mine, "gone"]) == mine
        for key, value in mine.items():
            assert await tx.get(S, key, "default") == value
        assert await tx.get(S, "gone", "default") == "default"
        assert await state.get_all(S) == {"v": 1, "l": [1], "m": {"a": 1}, "n": 5, "gone": 1}
    assert await state.get_all(S) == mine


@pytest.mark.parametrize("change", ["set", "delete", "append", "ttl", "recreate", "create"])
async def test_a_read_that_no_longer_holds_refuses_everything(
    state: StateManager, store: Store, change: str
) -> None:
    """The error names scope, key and both revisions, and not one byte has changed."""
    await state.append(S, "k", 1)
    before = await state.get_record(S, "k")
    assert before is not None
    key = "absent" if change == "create" else "k"
    tx = state.transaction()
    await tx.get(S, key)
    tx.set(T, "a", 1)
    tx.append(S, "l", "x" * 1000)
    tx.set(T, "big", "x" * 600_000)
    if change in ("set", "create"):
        await state.set(S, key, 2)
    elif change == "delete":
        await state.delete(S, "k")
    elif change == "append":
        await state.append(S, "k", 2)
    elif change == "ttl":
        await state.expire(S, "k", 100)
    else:
        await state.delete(S, "k")
        await state.append(S, "k", 1)
    now = await state.get_record(S, key)
    dump = store.dump(without=(":ring:", ":p:"))
    elements = store.elements()
    with pytest.raises(ConflictError) as caught:
        async with tx:
            pass
    (conflict,) = caught.value.keys
    expected = None if change == "create" else before.revision
    assert conflict == (S, key, expected, now.revision if now else None)
    assert tx.revision is None
    assert store.dump(without=(":ring:", ":p:")) == dump
    assert store.elements() == elements


async def test_every_conflicting_key_is_named(state: StateManager) -> None:
    """In the order in which they were read."""
    await state.set_many(S, {"a": 1, "b": 2, "c": 3})
    tx = state.transaction()
    await tx.get_many(S, ["a", "b", "c"])
    await tx.get(T, "d")
    await state.set(S, "a", 9)
    await state.delete(S, "c")
    await state.set(T, "d", 9)
    with pytest.raises(ConflictError) as caught:
        async with tx:
            tx.set(S, "e", 1)
    assert [(key.scope, key.key) for key in caught.value.keys] == [(S, "a"), (S, "c"), (T, "d")]
    assert caught.value.keys[1].actual is None


async def test_write_skew_is_prevented(state: StateManager) -> None:
    """Two that each read both and write one: the second is refused."""
    await state.set_many(S, {"x": 1, "y": 1})

    async def withdraw(key: str, both_read: asyncio.Barrier) -> None:
        async with state.transaction() as tx:
            total = sum((await tx.get_many(S, ["x", "y"])).values())
            await both_read.wait()
            if total > 1:
                tx.set(S, key, 0)

    barrier = asyncio.Barrier(2)
    outcomes = await asyncio.gather(
        withdraw("x", barrier), withdraw("y", barrier), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(ConflictError) == 1
    assert sum((await state.get_many(S, ["x", "y"])).values()) == 1


async def test_a_read_only_transaction_validates(state: StateManager, store: Store) -> None:
    """Its reads were of one moment, or it says so; nothing is written either way."""
    await state.set_many(S, {"a": 1, "b": 1})
    before = store.dump()
    async with state.transaction() as tx:
        assert await tx.get(S, "a") == 1
        assert await tx.get(T, "b") is None
    assert tx.revision is None
    assert store.dump() == before
    with pytest.raises(ConflictError):
        async with state.transaction() as tx:
            await tx.get(S, "a")
            await state.set(S, "a", 2)


async def test_an_empty_transaction_is_nothing(state: StateManager, store: Store) -> None:
    """It sends nothing."""
    before = store.dump(without=())
    async with state.transaction() as tx:
        pass
    assert tx.revision is None
    assert store.dump(without=()) == before


async def test_an_exception_discards_everything(state: StateManager, store: Store) -> None:
    """And reaches the caller; the transaction is over."""
    before = store.dump()
    with pytest.raises(KeyError):
        async with state.transaction() as tx:
            tx.set(S, "k", 1)
            raise KeyError
    assert store.dump() == before
    with pytest.raises(InvalidArgumentError, match="transaction"):
        tx.set(S, "k", 1)


async def test_a_transaction_that_ended_takes_nothing_more(state: StateManager) -> None:
    """Neither reads nor writes, and no second commit."""
    async with state.transaction() as tx:
        tx.set(S, "k", 1)
    for write in (
        lambda: tx.set(S, "k", 1),
        lambda: tx.set_if_absent(S, "k", 1),
        lambda: tx.delete(S, "k"),
        lambda: tx.increment(S, "n"),
        lambda: tx.append(S, "l", 1),
        lambda: tx.merge(S, "m", {"a": 1}),
        lambda: tx.expire(S, "k", 1),
    ):
        with pytest.raises(InvalidArgumentError, match="transaction"):
            write()  # type: ignore[no-untyped-call]
    for read in (tx.get(S, "k"), tx.get_many(S, ["k"]), tx.__aexit__(None, None, None)):
        with pytest.raises(InvalidArgumentError, match="transaction"):
            await read
    assert await state.get_all(S) == {"k": 1}


async def test_run_transaction_runs_again_until_nobody_disturbs(state: StateManager) -> None:
    """And loses no update."""
    await state.set_many(S, {"a": 0, "b": 0})
    runs = 0

    async def move_one(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        both = await tx.get_many(S, ["a", "b"])
        tx.set(S, "a", both["a"] - 1)
        tx.set(S, "b", both["b"] + 1)
        return int(both["b"])

    results = await asyncio.gather(
        *[state.run_transaction(move_one, attempts=200) for _ in range(15)]
    )
    assert sorted(results) == list(range(15))
    assert await state.get_all(S) == {"a": -15, "b": 15}
    assert runs >= 15


async def test_run_transaction_gives_up_after_its_attempts(state: StateManager) -> None:
    """With the last conflict."""
    runs = 0

    async def overtaken(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.get(S, "k")
        await state.set(S, "k", runs)
        tx.set(S, "other", 1)

    with pytest.raises(ConflictError):
        await state.run_transaction(overtaken, attempts=3)
    assert runs == 3
    assert await state.get_all(S) == {"k": 3}
    for attempts in (0, -1, "3", None):
        with pytest.raises(InvalidArgumentError, match="attempts"):
            await state.run_transaction(overtaken, attempts=attempts)  # type: ignore[arg-type]


async def test_set_if_absent_is_a_condition_at_the_commit(state: StateManager) -> None:
    """It needs no read, and holds for expired and just deleted keys."""
    await state.set(S, "there", 1)
    with pytest.raises(ConflictError) as caught:
        async with state.transaction() as tx:
            tx.set_if_absent(S, "there", 2)
            tx.set(S, "other", 2)
    assert caught.value.keys[0].key == "there"
    async with state.transaction() as tx:
        tx.delete(S, "there")
        tx.set_if_absent(S, "there", 3)
    assert await state.get_all(S) == {"there": 3}


async def test_blind_writes_do_not_conflict(state: StateManager) -> None:
    """What is not read does not matter."""

    async def add(i: int) -> None:
        async with state.transaction() as tx:
            tx.increment(S, "n")
            tx.append(S, "l", i)
            tx.merge(S, "m", {f"f{i}": i})
            tx.set(S, "last", i)

    await asyncio.gather(*[add(i) for i in range(50)])
    assert await state.get(S, "n") == 50
    assert sorted(await state.get(S, "l")) == list(range(50))
    assert len(await state.get(S, "m")) == 50


@pytest.mark.parametrize("read_first", [False, True])
async def test_partial_updates_of_whole_values_rewrite_them_once(
    state: StateManager, read_first: bool
) -> None:
    """With what is there, whatever the caller did to what it got; class and version stay."""
    await state.set(S, "l", [1], schema_version=4, ttl=100)
    await state.set(S, "m", {"a": 1}, state_class=StateClass.ARCHIVE)
    await state.set(S, "big", ["x" * 600_000])
    async with state.transaction() as tx:
        if read_first:
            (await tx.get(S, "l")).append("only mine")
            (await tx.get(S, "m"))["b"] = "only mine"
        tx.append(S, "l", 2)
        tx.merge(S, "m", {"c": 3})
        tx.append(S, "big", 1)
        tx.set(T, "other", 1)
    assert await state.get(S, "l") == [1, 2]
    assert await state.get(S, "m") == {"a": 1, "c": 3}
    assert await state.get(S, "big") == ["x" * 600_000, 1]
    one, two = await state.get_record(S, "l"), await state.get_record(S, "m")
    assert one is not None
    assert two is not None
    assert (one.schema_version, two.state_class) == (4, StateClass.ARCHIVE)
    assert one.expires is not None
    assert one.revision == two.revision == tx.revision


async def test_what_is_given_is_taken_as_it_is_at_that_moment(state: StateManager) -> None:
    """A later change of the object is not seen; nor does a value that was read follow."""
    value, item, fields = [1], [2], {"f": [3]}
    async with state.transaction() as tx:
        tx.set(S, "v", value)
        tx.append(S, "l", item)
        tx.merge(S, "m", fields)
        for mutable in (value, item, fields["f"]):
            mutable.append(object())  # type: ignore[arg-type]
        (await tx.get(S, "v")).append("mine")
        assert await tx.get(S, "v") == [1]
    assert await state.get_all(S) == {"v": [1], "l": [[2]], "m": {"f": [3]}}


@pytest.mark.parametrize(
    "operation",
    ["append to text", "append to number", "merge into list", "increment text", "append to map"],
)
async def test_a_wrong_kind_refuses_everything(
    state: StateManager, store: Store, operation: str
) -> None:
    """Found by the server, in the same step."""
    await state.set_many(S, {"text": "x", "n": 1, "list": [1]})
    await state.merge(S, "map", {"a": 1})
    dump = store.dump()
    with pytest.raises(WrongKindError) as caught:
        async with state.transaction() as tx:
            tx.set(T, "other", 1)
            if operation == "append to text":
                tx.append(S, "text", 1)
            elif operation == "append to number":
                tx.append(S, "n", 1)
            elif operation == "merge into list":
                tx.merge(S, "list", {"a": 1})
            elif operation == "append to map":
                tx.append(S, "map", 1)
            else:
                tx.increment(S, "text")
    assert caught.value.scope == S
    assert store.dump() == dump


async def test_an_overflow_refuses_everything(state: StateManager, store: Store) -> None:
    """At the server, or where two increments are folded into one."""
    await state.set(S, "n", 2**63 - 2)
    dump = store.dump()
    with pytest.raises(NumberOverflowError):
        async with state.transaction() as tx:
            tx.set(T, "other", 1)
            tx.increment(S, "n", 2)
    with pytest.raises(NumberOverflowError):
        async with state.transaction() as tx:
            tx.set(T, "other", 2**63 - 1)
            tx.increment(T, "other")
    assert store.dump() == dump


async def test_a_thousand_changes_are_the_most(state: StateManager, store: Store) -> None:
    """One more is refused before anything is sent."""
    async with state.transaction() as tx:
        for i in range(1000):
            tx.set(S, f"k{i}", i)
    assert await state.count(S) == 1000
    dump = store.dump(without=())
    with pytest.raises(LimitError, match="changes in one commit"):
        async with state.transaction() as tx:
            tx.set(S, "big", "x" * 600_000)
            for i in range(1000):
                tx.set(S, f"k{i}", i)
    with pytest.raises(LimitError, match="bytes in one commit"):
        async with state.transaction() as tx:
            tx.set(S, "big", "x" * 600_000)
            for i in range(20):
                tx.set(S, f"k{i}", "x" * 500_000)
    assert store.dump(without=()) == dump


async def test_scopes_of_several_shards_are_refused_by_name(
    url: str, namespace: str, store: Store
) -> None:
    """Never split silently; within one shard everything works."""
    store.space = KeySpace(namespace, 4)
    async with connect(url, options=Options(namespace=namespace, shards=4)) as spell:
        core = spell.state._driver.core
        scopes = [f"agent:{i}" for i in range(8)]
        shards = {scope: core.scope_key(scope).shard for scope in scopes}
        other = next(scope for scope in scopes if shards[scope] != shards["agent:0"])
        dump = store.dump(without=())
        with pytest.raises(CrossShardError) as caught:
            async with spell.state.transaction() as tx:
                tx.set("agent:0", "big", "x" * 600_000)
                tx.set(other, "k", 1)
        assert set(caught.value.scopes) == {"agent:0", other}
        with pytest.raises(CrossShardError):
            async with spell.state.transaction() as tx:
                await tx.get("agent:0", "k")
                tx.set(other, "k", 1)
        assert store.dump(without=()) == dump
        async with spell.state.transaction() as tx:
            tx.set("workflow:w", "k", 1)
            tx.set("workflow:w/step:s", "k", 2)
        assert await spell.state.get("workflow:w/step:s", "k") == 2
        for scope in scopes:
            await spell.state.set(scope, "k", scope)
        assert sorted([str(s) async for s in spell.state.scopes(kind="agent")]) == scopes


async def test_expired_reads_are_absent_ones(state: StateManager, expiring: Expiring) -> None:
    """And a key that is set meanwhile conflicts."""
    await expiring(S, k=1, l=[1])
    async with state.transaction() as tx:
        assert await tx.get(S, "k") is None
        tx.append(S, "l", 2)
        tx.expire(S, "k", 100)
    assert await state.get_all(S) == {"l": [2]}
    with pytest.raises(ConflictError):
        async with state.transaction() as tx:
            assert await tx.get(S, "k") is None
            await state.set(S, "k", 2)


async def test_what_cannot_be_stored_is_refused_where_it_is_said(
    state: StateManager, store: Store
) -> None:
    """Not only at the commit, and what was said before still goes through."""
    bad: Any
    async with state.transaction() as tx:
        tx.set(S, "ok", 1)
        for bad in (object(), [object()], {"a": {"b": object()}}):
            with pytest.raises(CodecError):
                tx.set(S, "k", bad)
            with pytest.raises(CodecError):
                tx.append(S, "k", bad)
            with pytest.raises(CodecError):
                tx.merge(S, "k", {"a": bad})
        for bad in ("1", None, True, 2**63):
            with pytest.raises(InvalidArgumentError, match="by"):
                tx.increment(S, "k", bad)
        with pytest.raises(InvalidArgumentError, match="items"):
            tx.append(S, "k")
        with pytest.raises(InvalidArgumentError, match="mapping"):
            tx.merge(S, "k", {})
        with pytest.raises(InvalidArgumentError, match="remove"):
            tx.merge(S, "k", {}, remove="abc")
        for scope, key in (("agents:x", "k"), (S, ""), (S, "__k")):
            with pytest.raises(InvalidArgumentError):
                tx.set(scope, key, 1)
            with pytest.raises(InvalidArgumentError):
                await tx.get(scope, key)
    assert await state.get_all(S) == {"ok": 1}


async def test_the_revision_orders_transactions_and_single_writes(state: StateManager) -> None:
    """They come from one sequence."""
    first = await state.set(S, "a", 1)
    async with state.transaction() as tx:
        tx.set(S, "a", 2)
    last = await state.set(S, "a", 3)
    assert isinstance(tx.revision, Revision)
    assert first < tx.revision < last
