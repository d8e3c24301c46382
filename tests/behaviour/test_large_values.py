"""Large values: laid down in pieces, adopted by one small commit, and read whole."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from fix_state import Raw, Store

from llmspell_dist import ConflictError, LimitError, StateClass, StateManager, WrongKindError
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.scripts import load_script

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


def noise(size: int) -> bytes:
    """Return what cannot be made smaller."""
    return os.urandom(size)


@pytest.mark.parametrize("size", [524_250, 524_300, 600_000, 2_000_000, 9_000_000])
async def test_a_large_value_comes_back_whole(state: StateManager, size: int) -> None:
    """By every reading call, and from the past; as one key of one revision."""
    value = {"data": noise(size)}
    revision = await state.set(S, "k", value, ttl=1000, schema_version=2)
    assert await state.get(S, "k") == value
    record = await state.get_record(S, "k")
    assert record is not None
    assert (record.value, record.revision, record.schema_version) == (value, revision, 2)
    assert record.kind == ("value" if size < 524_288 else "blob")
    assert record.expires is not None
    assert await state.get_many(S, ["k", "missing"]) == {"k": value}
    assert [item async for item in state.items(S)] == [("k", value)]
    assert await state.get_at(S, "k", revision) == value
    assert await state.exists(S, "k")
    if size > 1_048_576:
        with pytest.raises(LimitError, match="items"):
            await state.get_all(S)
    else:
        assert await state.get_all(S) == {"k": value}


async def test_large_values_go_through_every_writing_call(
    state: StateManager, store: Store
) -> None:
    """Conditions, batches, updates, transactions, copies; nothing of refused ones stays."""
    one, two, three = ("x" * 700_000, "y" * 700_000, "z" * 700_000)
    assert await state.set_if_absent(S, "k", one) is not None
    assert await state.set_if_absent(S, "k", two) is None
    record = await state.get_record(S, "k")
    assert record is not None
    with pytest.raises(ConflictError):
        await state.compare_and_set(S, "k", two, expected=None)
    revision = await state.compare_and_set(S, "k", two, expected=record.revision)
    assert await state.update(S, "k", lambda v: v + "!") == two + "!"
    await state.set_many(S, {"a": one, "b": 1, "c": three})
    async with state.transaction() as tx:
        assert await tx.get(S, "k") == two + "!"
        tx.set(S, "k", three)
        tx.set("user:u", "k", one)
    assert await state.copy_scope(S, "user:copy") == 4
    for scope in (S, "user:copy"):
        expected = {"k": three, "a": one, "b": 1, "c": three}
        assert await state.get_many(scope, expected) == expected
    assert len(store.elements()) == 7
    history = await state.history(S, "k")
    assert [change.op for change in history] == ["set"] * 4
    assert history[2].revision == revision
    assert not history[0].has_value
    assert await state.delete(S, "k")
    await state.set(S, "a", "small")
    assert len(store.elements()) == 5


async def test_many_large_values_at_once(state: StateManager) -> None:
    """They do not get mixed up."""
    values = {f"k{i}": f"{i}" * 600_000 for i in range(8)}
    await asyncio.gather(*[state.set(S, key, value) for key, value in values.items()])
    found = await asyncio.gather(*[state.get(S, key) for key in values])
    assert found == list(values.values())


async def test_readers_see_the_old_or_the_new_value_whole(state: StateManager) -> None:
    """While it is replaced again and again."""
    await state.set(S, "k", ["0"] * 300_000)

    async def write() -> None:
        for i in range(6):
            await state.set(S, "k", [str(i)] * (300_000 + i))

    async def read() -> None:
        while not writing.done():
            found = await state.get(S, "k")
            assert len(set(found)) == 1

    writing = asyncio.ensure_future(write())
    await asyncio.gather(writing, read(), read())


async def test_large_lists_and_maps_that_were_set_can_be_grown(
    state: StateManager, store: Store
) -> None:
    """Converted like small ones."""
    rows = [{"row": i, "text": "x" * 50} for i in range(12_000)]
    await state.set(S, "l", rows)
    assert await state.append(S, "l", "last") == 12_001
    assert await state.get(S, "l") == [*rows, "last"]
    fields = {f"f{i}": "y" * 50 for i in range(12_000)}
    await state.set(S, "m", fields)
    assert await state.merge(S, "m", {"more": 1}, remove=["f0"]) == 12_000
    assert (await state.get(S, "m")) == {
        **{k: v for k, v in fields.items() if k != "f0"},
        "more": 1,
    }
    await state.set(S, "text", "x" * 600_000)
    with pytest.raises(WrongKindError):
        await state.append(S, "text", 1)


async def test_a_list_may_grow_beyond_what_one_value_may_have(state: StateManager) -> None:
    """Its elements keep the limits of values, it does not."""
    for i in range(3):
        await state.append(S, "l", "x" * 4_000_000, i)
    found = await state.get(S, "l")
    assert (len(found), found[0], found[-1]) == (6, "x" * 4_000_000, 2)
    assert await state.get_slice(S, "l", 5) == [2]


@pytest.mark.library_only("it looks at the requests to the server")
async def test_pieces_that_come_twice_are_laid_down_once(state: StateManager, raw: Raw) -> None:
    """As after a lost connection: all of them, in their order, from any point on."""
    driver, core = state._driver, state._driver.core
    scope = core.scope_key(S)
    for form, width in ((b"list", 1), (b"map", 2)):
        key = core.keyspace.generation(scope.scope, core.new_generation())
        pieces = [[b"%d-%d" % (piece, i) for i in range(4)] for piece in range(3)]
        calls = [
            ScriptCall(load_script("stage"), (key,), (form, b"%d" % (4 * i // width), *piece))
            for i, piece in enumerate(pieces)
        ]
        for call in calls:
            await driver.execute(call)
        before = raw("LRANGE", key, 0, -1) if form == b"list" else raw("HGETALL", key)
        for call in calls:
            assert await driver.execute(call) == 12 // width
        after = raw("LRANGE", key, 0, -1) if form == b"list" else raw("HGETALL", key)
        assert after == before
        assert 0 < raw("PTTL", key) <= 3_600_000
        raw("DEL", key)
        assert await driver.execute(calls[1]) == -1


@pytest.mark.library_only("it looks at the requests to the server")
@pytest.mark.parametrize("lost", ["one piece", "everything"])
async def test_elements_that_were_lost_before_the_commit_are_noticed(
    state: StateManager, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Nothing is written; trying again is safe, and succeeds."""
    from llmspell_dist.errors import StagedElementsLostError

    driver = state._driver
    commit = driver.lanes.commit
    await state.set(S, "other", 1)
    dump = store.dump(without=(":ring:", ":p:"))

    def losing(one: Any, ack: Any = None) -> Any:
        for key in store.all_keys():
            if b":p:" in key:
                raw("LPOP" if lost == "one piece" else "DEL", key)
        return commit(one, ack)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "commit", losing)
        with pytest.raises(StagedElementsLostError) as caught:
            await state.set(S, "k", "x" * 600_000)
    assert caught.value.retryable
    assert store.dump(without=(":ring:", ":p:")) == dump
    await state.set(S, "k", "x" * 600_000)
    assert await state.get(S, "k") == "x" * 600_000


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000_001, ["x" * 5_000_000] * 3, b"x" * 20_000_000],
    ids=["text", "list", "bytes"],
)
async def test_a_value_over_10_mb_is_refused_before_anything_is_sent(
    state: StateManager, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    """With its size and the limit; by every writing call."""
    sent: list[Any] = []

    def refuse(*request: Any) -> Any:
        sent.append(request)
        raise AssertionError("sent")

    for place in (state._driver, state):
        for name in ("commit", "_commit", "execute", "submit", "_submit"):
            if hasattr(place, name):
                monkeypatch.setattr(place, name, refuse)
    tx = state.transaction()
    for call in (
        lambda: state.set(S, "k", value),
        lambda: state.set_if_absent(S, "k", value),
        lambda: state.compare_and_set(S, "k", value, expected=None),
        lambda: state.set_many(S, {"a": 1, "k": value}),
        lambda: state.append(S, "k", value),
        lambda: state.merge(S, "k", {"f": value}),
        lambda: state.set(S, "k", value, state_class=StateClass.ARCHIVE),
    ):
        with pytest.raises(LimitError) as caught:
            await call()
        assert caught.value.limit == 10_000_000
    with pytest.raises(LimitError):
        tx.set(S, "k", value)
    with pytest.raises(LimitError):
        tx.append(S, "k", value)
    assert sent == []


async def test_too_deep_a_value_is_refused_with_its_path(state: StateManager, store: Store) -> None:
    """128 levels go, 129 do not, and a cycle has an error of its own."""
    from llmspell_dist import CircularReferenceError

    deep: Any = 1
    for _ in range(128):
        deep = {"a": deep}
    await state.set(S, "k", deep)
    assert await state.get(S, "k") == deep
    before = store.dump(without=())
    with pytest.raises(LimitError) as caught:
        await state.set(S, "k", {"top": deep})
    assert caught.value.limit == 128
    assert (caught.value.path or "").startswith("$.top.a")
    loop: list[Any] = [1]
    loop.append({"again": loop})
    for call in (state.set(S, "k", loop), state.append(S, "l", loop)):
        with pytest.raises(CircularReferenceError) as cycle:
            await call
        assert "again" in cycle.value.path
    assert store.dump(without=()) == before


@pytest.mark.library_only("it looks at the requests to the server")
async def test_requests_stay_small_while_a_large_value_travels(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single one would hold the server up."""
    sizes: list[int] = []
    execute = state._driver.execute

    def watch(request: Command | ScriptCall) -> Any:
        parts = request.args if isinstance(request, ScriptCall) else (request.packed,)
        sizes.append(sum(map(len, parts)))
        return execute(request)

    monkeypatch.setattr(state._driver, "execute", watch)
    await state.set(S, "k", noise(5_000_000))
    assert len(sizes) > 50
    assert max(sizes) < 200_000
