"""Single keys: what goes in comes out, whatever the kind."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from fix_state import Store

from llmspell_dist import InvalidArgumentError, Revision, Scope, StateClass, StateManager
from llmspell_dist.client import Spell

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, -(2**200),
    0.0, -0.0, 0.1, 1e300, -2.5e-300, 1e16, float("inf"), float("-inf"),
    "", "a", "é" * 300, "日本\U0001f600", "\0\r\n", b"", b"\xff\0x", "123", "1.5",
    [], [1, [2, [3]]], ["x"] * 500, {}, {"a": {"b": [None]}},
    {1: "int", "1": "str", None: 0, (1, 2): 3},
    (), (1, (2,)), [(1,), [1]], set(), {1, "a"}, frozenset({1, 2}), {frozenset({1}): {2}},
    datetime(2024, 5, 6, 7, 8, 9, 123456, UTC), datetime(1, 1, 1, tzinfo=UTC),
    datetime(2024, 5, 6, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    date(2024, 2, 29), UUID(int=2**127 + 5), Decimal("1.10"), Decimal("-1E+40"),
    {"mixed": [1, 2.5, "x", b"y", None, True, Decimal(1), {1}, (2,)]},
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal and of one type, down to their parts."""
    if type(a) is not type(b) or repr(a).replace("-0.0", "x") == "nan":
        return False
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=True)
        return len(a) == len(b) and all(same(x, y) and same(v, w) for (x, v), (y, w) in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


async def test_every_supported_value_comes_back_equal_and_of_the_same_type(
    state: StateManager,
) -> None:
    """Through the single read, the batch, the scope, the page and the log."""
    keys = {f"k{i}": value for i, value in enumerate(VALUES)}
    await asyncio.gather(*[state.set(S, key, value) for key, value in keys.items()])
    many, everything = await state.get_many(S, keys), await state.get_all(S)
    items = {key: value async for key, value in state.items(S)}
    for key, value in keys.items():
        assert same(await state.get(S, key), value), (key, value)
        record = await state.get_record(S, key)
        assert record is not None
        for found in (many[key], everything[key], items[key], record.value):
            assert same(found, value), (key, value, found)
        assert same(await state.get_at(S, key, record.revision), value)
        (change,) = await state.history(S, key)
        assert same(change.value, value)


async def test_nan_comes_back(state: StateManager) -> None:
    """It is a float like any other, though not equal to itself."""
    await state.set(S, "nan", float("nan"))
    found = await state.get(S, "nan")
    assert found != found  # noqa: PLR0124


async def test_a_missing_key_has_the_default_and_nothing_else(state: StateManager) -> None:
    """In a scope that never existed, too."""
    assert await state.get(S, "k") is None
    assert await state.get(S, "k", "other") == "other"
    assert await state.get_record(S, "k") is None
    assert not await state.exists(S, "k")
    assert not await state.delete(S, "k")
    assert await state.history(S, "k") == []
    assert await state.get_all(S) == {}
    assert await state.get_many(S, ["k"]) == {}
    assert await state.count(S) == 0
    await state.set(S, "none", None)
    assert await state.get(S, "none", "other") is None
    assert await state.exists(S, "none")


async def test_a_record_tells_all_about_its_value(state: StateManager) -> None:
    """Created stays, updated and revision move on, and times are the server's."""
    first = await state.set(S, "k", "v", schema_version=7, state_class=StateClass.TRUSTED)
    one = await state.get_record(S, "k")
    assert one is not None
    assert (one.scope, one.key, one.value, one.kind) == (S, "k", "v", "value")
    assert (one.revision, one.created, one.updated) == (first, first.time, first.time)
    assert (one.expires, one.state_class, one.schema_version) == (None, StateClass.TRUSTED, 7)
    second = await state.set(S, "k", "w", ttl=100)
    two = await state.get_record(S, "k")
    assert two is not None
    assert second > first
    assert (two.revision, two.created, two.updated) == (second, first.time, second.time)
    assert two.expires is not None
    assert timedelta(seconds=99) < two.expires - two.updated <= timedelta(seconds=100.1)
    assert (two.state_class, two.schema_version) == (StateClass.STANDARD, 1)


async def test_created_begins_anew_after_a_delete(state: StateManager) -> None:
    """A key that comes again is another one."""
    await state.set(S, "k", 1)
    await state.delete(S, "k")
    revision = await state.set(S, "k", 2)
    record = await state.get_record(S, "k")
    assert record is not None
    assert record.created == revision.time


async def test_kinds_replace_each_other_without_leaving_anything(
    state: StateManager, store: Store
) -> None:
    """Whatever was there, a set puts the new value whole in its place."""
    large = "x" * 600_000

    async def put(kind: str) -> Any:
        if kind == "list":
            await state.delete(S, "k")
            await state.append(S, "k", 1, 2)
            return [1, 2]
        if kind == "map":
            await state.delete(S, "k")
            await state.merge(S, "k", {"a": 1})
            return {"a": 1}
        value = {"value": "v", "number": 5, "blob": large}[kind]
        await state.set(S, "k", value)
        return value

    kinds = ["value", "number", "blob", "list", "map"]
    for first in kinds:
        for second in kinds:
            await put(first)
            value = await put(second)
            record = await state.get_record(S, "k")
            assert record is not None
            assert (record.kind, record.value) == (second, value)
            assert len(store.elements()) == (second in ("blob", "list", "map"))
    assert await state.delete(S, "k")
    assert store.elements() == []


async def test_200_tasks_set_one_key_and_the_last_revision_is_what_is_there(
    state: StateManager,
) -> None:
    """Revisions order the writes, and none is given twice."""
    revisions = await asyncio.gather(*[state.set(S, "k", i) for i in range(200)])
    assert len(set(revisions)) == 200
    record = await state.get_record(S, "k")
    assert record is not None
    last = max(range(200), key=lambda i: revisions[i])
    assert (record.value, record.revision) == (last, revisions[last])


async def test_of_200_deletes_one_finds_the_key(state: StateManager) -> None:
    """The others are told that there was nothing."""
    await state.set(S, "k", 1)
    assert sum(await asyncio.gather(*[state.delete(S, "k") for _ in range(200)])) == 1


async def test_keys_are_normalised_so_that_one_text_is_one_key(state: StateManager) -> None:
    """A decomposed letter and the composed one look alike, and are alike."""
    await state.set(S, "e\u0301te\u0301", 1)
    assert await state.get(S, "\xe9t\xe9") == 1
    assert [key async for key in state.keys(S)] == ["\xe9t\xe9"]


async def test_scopes_do_not_see_each_other(state: StateManager) -> None:
    """Ids with separators in them neither."""
    scopes = [
        Scope.global_(), Scope.agent("a"), Scope.agent("a:b"), Scope.user("a"), Scope.workflow("a"),
        Scope.step("a", "b"), Scope.workflow("a/step:b"), Scope.custom("a:ttl"),
        Scope.custom("a:p:1"), Scope.hook("*"), Scope.tool("{0}"), Scope.session("a_b"),
    ]  # fmt: skip
    for i, scope in enumerate(scopes):
        await state.set(scope, "b:c", i)
    for i, scope in enumerate(scopes):
        assert await state.get(scope, "b:c") == i
        assert await state.get(str(scope), "b:c") == i
    assert sorted([scope async for scope in state.scopes()]) == sorted(scopes)


async def test_two_namespaces_do_not_see_each_other(
    state: StateManager, url: str, namespace: str
) -> None:
    """They share a server and nothing else."""
    from llmspell_dist import connect

    await state.set(S, "k", "ours")
    async with connect(url, namespace=namespace + "x") as other:
        assert await other.state.get(S, "k") is None
        assert [scope async for scope in other.state.scopes()] == []
        assert (await other.log.stat()).entries == 0


async def test_writes_of_one_caller_are_read_by_the_next_client(
    state: StateManager, url: str, namespace: str
) -> None:
    """What is acknowledged is there for everybody."""
    from llmspell_dist import connect

    revision = await state.set(S, "k", {"a": 1})
    async with connect(url, namespace=namespace) as other:
        record = await other.state.get_record(S, "k")
        assert record is not None
        assert (record.value, record.revision) == ({"a": 1}, revision)


async def test_update_loses_nothing_with_many_writers(state: StateManager) -> None:
    """Read, change, write: every one of them counts."""
    await state.set(S, "k", {"n": 0}, schema_version=3, state_class=StateClass.TRUSTED, ttl=100)

    async def add() -> None:
        await state.update(S, "k", lambda v: {"n": v["n"] + 1}, attempts=200)

    await asyncio.gather(*[add() for _ in range(20)])
    record = await state.get_record(S, "k")
    assert record is not None
    assert record.value == {"n": 20}
    assert (record.schema_version, record.state_class) == (3, StateClass.TRUSTED)
    assert record.expires is not None


async def test_update_takes_a_coroutine_function_and_a_default(state: StateManager) -> None:
    """The function may wait for something, and returns what is stored."""

    async def grow(value: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [*value, 1]

    assert await state.update(S, "k", grow, default=[]) == [1]
    assert await state.update(S, "k", grow) == [1, 1]


async def test_an_exception_in_update_changes_nothing(state: StateManager) -> None:
    """It reaches the caller as it is."""
    await state.set(S, "k", 1)

    def fail(value: int) -> int:
        raise KeyError(value)

    with pytest.raises(KeyError):
        await state.update(S, "k", fail)
    assert await state.get(S, "k") == 1


async def test_update_gives_up_with_the_facts(state: StateManager) -> None:
    """Attempts, time, and the revisions that stood against each other."""
    from llmspell_dist import UpdateConflictError

    await state.set(S, "k", 0)

    async def overtaken(value: int) -> int:
        await state.set(S, "k", value + 100)
        return value

    with pytest.raises(UpdateConflictError) as caught:
        await state.update(S, "k", overtaken, attempts=3)
    error = caught.value
    assert error.attempts == 3
    assert error.elapsed_s > 0
    assert isinstance(error.expected, Revision)
    assert error.keys[0].actual == error.actual > error.expected
    assert (error.keys[0].scope, error.keys[0].key) == (S, "k")
    with pytest.raises(InvalidArgumentError, match="attempts"):
        await state.update(S, "k", overtaken, attempts=0)


async def test_ping_and_server_tell_about_the_connection(spell: Spell) -> None:
    """A round trip takes time, and the server has a version."""
    assert 0 < await spell.ping() < 5
    assert spell.server is not None
    assert spell.server.version
