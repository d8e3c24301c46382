"""Batches: many keys in one commit, and scopes listed page by page."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_state import Expiring, Store

from llmspell_dist import (
    InvalidArgumentError,
    LimitError,
    Scope,
    ScopeKind,
    StateClass,
    StateManager,
)
from llmspell_dist.errors import InvalidKeyError

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


async def test_a_batch_is_one_commit_with_one_revision(state: StateManager, store: Store) -> None:
    """100 keys, one log entry with 100 changes."""
    values = {f"k{i}": [i, str(i)] for i in range(100)}
    revision = await state.set_many(S, values, ttl=100, schema_version=2)
    assert await state.get_many(S, [*values, "missing"]) == values
    assert await state.count(S) == 100
    (entry,) = store.log()
    assert (entry.revision, len(entry.changes)) == (revision, 100)
    record = await state.get_record(S, "k7")
    assert record is not None
    assert (record.revision, record.schema_version) == (revision, 2)
    assert record.expires is not None


async def test_a_batch_of_a_thousand_is_the_most(state: StateManager, store: Store) -> None:
    """For every call that takes many."""
    keys = [f"k{i}" for i in range(1000)]
    await state.set_many(S, dict.fromkeys(keys, 1))
    assert len(await state.get_many(S, keys)) == 1000
    assert len(await state.get_all(S)) == 1000
    assert await state.delete_many(S, keys) == 1000
    before = store.dump()
    more = [*keys, "one more"]
    for attempt in (
        state.set_many(S, dict.fromkeys(more, 1)),
        state.get_many(S, more),
        state.delete_many(S, more),
    ):
        with pytest.raises(LimitError) as caught:
            await attempt
        assert (caught.value.actual, caught.value.limit) == (1001, 1000)
    assert store.dump() == before


async def test_batches_read_every_kind(state: StateManager) -> None:
    """Plain values, elements one by one, and large values."""
    await state.set_many(S, {"v": "x", "n": 5, "big": "y" * 600_000})
    await state.append(S, "l", *range(1000))
    await state.merge(S, "m", {"a": 1})
    expected = {"v": "x", "n": 5, "l": list(range(1000)), "m": {"a": 1}, "big": "y" * 600_000}
    assert await state.get_many(S, expected) == expected
    assert await state.get_all(S) == expected
    assert {key: value async for key, value in state.items(S)} == expected
    assert await state.delete_many(S, [*expected, "missing"]) == 5
    assert await state.get_all(S) == {}


async def test_one_value_that_cannot_be_stored_spoils_the_whole_batch(
    state: StateManager, store: Store
) -> None:
    """Nothing is sent, not even the large value before it."""
    before = store.dump()
    for bad in ({"big": "x" * 600_000, "bad": object()}, {"big": "x" * 600_000, "": 1}):
        with pytest.raises(ValueError):  # noqa: PT011 - a codec and an argument error
            await state.set_many(S, bad)
    with pytest.raises(LimitError):
        await state.set_many(
            S, {"big": "x" * 600_000, **{f"k{i}": "y" * 500_000 for i in range(20)}}
        )
    assert store.dump() == before


async def test_empty_and_ambiguous_batches(state: StateManager) -> None:
    """Nothing to read is nothing found; nothing to set is an error; two spellings are one key."""
    assert await state.get_many(S, []) == {}
    assert await state.delete_many(S, []) == 0
    with pytest.raises(InvalidArgumentError, match="mapping"):
        await state.set_many(S, {})
    with pytest.raises(InvalidArgumentError, match="mapping"):
        await state.set_many(S, [("k", 1)])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="mapping"):
        await state.set_many(S, {"\xe9": 1, "e\u0301": 2})
    for call in (state.get_many, state.delete_many):
        with pytest.raises(InvalidArgumentError, match="keys"):
            await call(S, "abc")
    await state.set(S, "\xe9", 1)
    assert await state.get_many(S, ["\xe9", "e\u0301"]) == {"\xe9": 1, "e\u0301": 1}
    assert await state.delete_many(S, ["\xe9", "e\u0301"]) == 1


async def test_a_whole_scope_is_read_at_once_only_while_it_is_small(
    state: StateManager,
) -> None:
    """Beyond 1,000 keys or 1 MiB the error says what to do instead."""
    for start in range(0, 1001, 500):
        keys = range(start, min(start + 500, 1001))
        await state.set_many(S, {f"k{i}": i for i in keys})
    with pytest.raises(LimitError, match=r"items\(\)") as caught:
        await state.get_all(S)
    assert caught.value.actual == 1001
    await state.set_many("agent:big", {f"k{i}": "x" * 400_000 for i in range(3)})
    with pytest.raises(LimitError, match="bytes") as caught:
        await state.get_all("agent:big")
    assert caught.value.actual is not None
    assert caught.value.actual > 1_200_000


async def test_listing_finds_every_key_once(state: StateManager) -> None:
    """Through pages of any size, with and without values."""
    values = {f"k{i:04}": i for i in range(1500)}
    for start in range(0, 1500, 500):
        await state.set_many(S, dict(list(values.items())[start : start + 500]))
    assert sorted([key async for key in state.keys(S)]) == sorted(values)
    assert {key: value async for key, value in state.items(S)} == values
    found: list[str] = []
    cursor = None
    pages = 0
    while True:
        page = await state.keys_page(S, cursor=cursor, limit=100)
        found += page.items
        pages += 1
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(values)
    assert pages > 5


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"prefix": "a"}, {"a", "a*b", "a?b", "a[b]", "a\\b", "axb", "a^b"}),
    ({"prefix": "a*"}, {"a*b"}),
    ({"prefix": "a?"}, {"a?b"}),
    ({"prefix": "a["}, {"a[b]"}),
    ({"prefix": "a\\"}, {"a\\b"}),
    ({"prefix": ""}, {"a", "a*b", "a?b", "a[b]", "a\\b", "axb", "a^b", "b", "é1"}),
    ({"prefix": "é"}, {"é1"}),
    ({"match": "a?b"}, {"a*b", "a?b", "a\\b", "axb", "a^b"}),
    ({"match": "a[x*]b"}, {"a*b", "axb"}),
    ({"match": "*b"}, {"a*b", "a?b", "a\\b", "axb", "a^b", "b"}),
    ({"match": "a\\*b"}, {"a*b"}),
    ({"match": "none*"}, set()),
]


async def test_keys_are_filtered_by_prefix_and_glob(state: StateManager) -> None:
    """A prefix is literal, a glob is the server's."""
    keys = ["a", "a*b", "a?b", "a[b]", "a\\b", "axb", "a^b", "b", "é1"]
    await state.set_many(S, dict.fromkeys(keys, 1))
    for options, expected in FILTERS:
        assert {key async for key in state.keys(S, **options)} == expected
        assert {key async for key, _ in state.items(S, **options)} == expected


async def test_keys_set_and_deleted_while_listing_do_no_harm(state: StateManager) -> None:
    """Keys that are there all the time come; those that go and come may or may not."""
    stay = {f"stay{i}" for i in range(600)}
    await state.set_many(S, dict.fromkeys(stay, 1))
    found = []
    number = 0
    async for key, _ in state.items(S):
        found.append(key)
        number += 1
        if number % 50 == 0:
            await state.set(S, f"new{number}", 1)
            await state.delete(S, f"new{number - 50}")
    assert stay <= set(found)


async def test_scopes_are_listed_by_kind_and_prefix(state: StateManager) -> None:
    """Only those that have keys; a glob in an id is only text."""
    scopes = [
        Scope.global_(), Scope.user("u"), Scope.agent("a1"), Scope.agent("a2"), Scope.agent("b*"),
        Scope.workflow("w"), Scope.step("w", "s1"), Scope.step("w", "s2"), Scope.session("u_1"),
        Scope.hook("h"), Scope.tool("t"), Scope.custom("c"),
    ]  # fmt: skip
    await asyncio.gather(*[state.set(scope, "k", 1) for scope in scopes])
    await state.set("agent:gone", "k", 1)
    await state.delete("agent:gone", "k")

    async def listed(**options: Any) -> list[Scope]:
        return sorted([scope async for scope in state.scopes(**options)])

    assert await listed() == sorted(scopes)
    for kind in ScopeKind:
        assert await listed(kind=kind) == sorted(s for s in scopes if s.kind is kind)
        assert await listed(kind=kind.value) == await listed(kind=kind)
    assert await listed(prefix="agent:a") == [Scope.agent("a1"), Scope.agent("a2")]
    assert await listed(prefix="agent:*") == []
    assert await listed(kind="workflow", prefix="workflow:w") == [Scope.workflow("w")]
    assert await listed(kind="agent", prefix="user:") == []
    with pytest.raises(InvalidArgumentError, match="kind"):
        await listed(kind="agents")


async def test_stat_tells_how_much_lies_in_a_scope(state: StateManager, expiring: Expiring) -> None:
    """Keys without the expired ones, bytes with them."""
    empty = await state.stat(S)
    assert (empty.keys, empty.bytes, empty.revision) == (0, 0, None)
    await state.set(S, "k", "x" * 1000)
    await state.append(S, "l", "y" * 1000)
    revision = await state.set(S, "big", "z" * 600_000)
    stat = await state.stat(S)
    assert (stat.scope, stat.keys, stat.revision) == (S, 3, revision)
    assert 602_000 < stat.bytes < 602_300
    await expiring(S, gone=1)
    assert (await state.stat(S)).keys == await state.count(S) == 3


async def test_a_batch_keeps_classes_by_rule_and_by_argument(state: StateManager) -> None:
    """One class for all of them if it is given."""
    await state.set_many(S, {"a": 1, "b": "x"}, state_class=StateClass.BULK)
    for key in ("a", "b"):
        record = await state.get_record(S, key)
        assert record is not None
        assert record.state_class is StateClass.BULK


async def test_an_invalid_key_among_many_is_named(state: StateManager, store: Store) -> None:
    """And nothing is sent."""
    before = store.dump()
    for call in (state.get_many, state.delete_many):
        with pytest.raises(InvalidKeyError):
            await call(S, ["ok", "__bad"])
    assert store.dump() == before
