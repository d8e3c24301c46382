"""Lists and maps that grow: only what is new travels, and readers see one value."""

from __future__ import annotations

import asyncio
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from fix_state import Expiring, Store

from llmspell_dist import (
    CodecError,
    InvalidArgumentError,
    StateClass,
    StateManager,
    WrongKindError,
)

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


async def test_append_begins_a_list_and_extends_it(state: StateManager) -> None:
    """The result is the new length."""
    assert await state.append(S, "l", "a") == 1
    assert await state.append(S, "l", {"b": [1]}, None, (1,)) == 4
    assert await state.get(S, "l") == ["a", {"b": [1]}, None, (1,)]
    record = await state.get_record(S, "l")
    assert record is not None
    assert record.kind == "list"


async def test_merge_begins_a_map_and_extends_it(state: StateManager) -> None:
    """The result is how many fields there are."""
    assert await state.merge(S, "m", {"a": 1, "b": 2}) == 2
    assert await state.merge(S, "m", {"b": 3, "c": [1]}, remove=["a"]) == 2
    assert await state.get(S, "m") == {"b": 3, "c": [1]}


async def test_a_list_that_was_set_whole_is_converted_once(
    state: StateManager, store: Store
) -> None:
    """Value, class, schema version, created and TTL stay."""
    first = await state.set(S, "l", [1, 2], ttl=100, schema_version=3)
    assert await state.append(S, "l", 3) == 3
    assert await state.append(S, "l", 4) == 4
    record = await state.get_record(S, "l")
    assert record is not None
    assert (record.kind, record.value, record.schema_version) == ("list", [1, 2, 3, 4], 3)
    assert record.created == first.time
    assert record.expires is not None
    assert [c.op for c in await state.history(S, "l")] == ["append", "set", "set"]


async def test_a_dict_that_was_set_whole_is_converted_once(state: StateManager) -> None:
    """Removals count in the step that converts, too."""
    await state.set(S, "m", {"a": 1, "b": 2}, schema_version=3)
    assert await state.merge(S, "m", {"b": 3, "c": 4}, remove=["a", "missing"]) == 2
    assert await state.get(S, "m") == {"b": 3, "c": 4}
    assert await state.merge(S, "m", {"d": 5}) == 3
    record = await state.get_record(S, "m")
    assert record is not None
    assert (record.kind, record.schema_version) == ("map", 3)
    assert record.value == {"b": 3, "c": 4, "d": 5}


async def test_only_lists_can_be_appended_to(state: StateManager, store: Store) -> None:
    """A tuple is none: it would not come back as one."""
    others: list[Any] = ["text", None, {"a": 1}, (1, 2), {1}, b"x", "y" * 600_000]
    await state.set_many(S, {str(i): value for i, value in enumerate(others)})
    before = store.dump()
    for key in map(str, range(len(others))):
        with pytest.raises(WrongKindError) as caught:
            await state.append(S, key, 1)
        found = caught.value
        assert (found.scope, found.key, found.operation) == (S, key, "append")
    assert store.dump() == before


async def test_only_dicts_can_be_merged_into(state: StateManager, store: Store) -> None:
    """And nothing is changed."""
    others: list[Any] = ["text", None, [1], (1, 2), {1}, b"x", "y" * 600_000]
    await state.set_many(S, {str(i): value for i, value in enumerate(others)})
    before = store.dump()
    for key in map(str, range(len(others))):
        with pytest.raises(WrongKindError):
            await state.merge(S, key, {"a": 1})
    assert store.dump() == before


async def test_a_map_is_no_list_and_a_list_no_map(state: StateManager, store: Store) -> None:
    """Element by element, too."""
    await state.append(S, "l", 1)
    await state.merge(S, "m", {"a": 1})
    before = store.dump()
    with pytest.raises(WrongKindError):
        await state.append(S, "m", 1)
    with pytest.raises(WrongKindError):
        await state.merge(S, "l", {"a": 1})
    assert store.dump() == before


async def test_200_concurrent_appends_are_all_there(state: StateManager) -> None:
    """Each at its own place, in the order of each caller."""
    lengths = await asyncio.gather(*[state.append(S, "l", i) for i in range(200)])
    assert sorted(lengths) == list(range(1, 201))
    found = await state.get(S, "l")
    assert sorted(found) == list(range(200))
    for i, length in enumerate(lengths):
        assert found[length - 1] == i


async def test_concurrent_appends_to_a_plain_list_convert_it_once(
    state: StateManager, store: Store
) -> None:
    """Nothing is lost or doubled, and only one generation stays."""
    await state.set(S, "l", ["base"])
    lengths = await asyncio.gather(*[state.append(S, "l", i) for i in range(40)])
    assert sorted(lengths) == list(range(2, 42))
    found = await state.get(S, "l")
    assert found[0] == "base"
    assert sorted(found[1:]) == list(range(40))
    # What the losers had laid down expires by itself.
    named = store.record(S, "l").payload[10:]
    assert [key for key in store.elements() if not key.endswith(named)] == []


async def test_concurrent_merges_into_a_plain_dict_convert_it_once(state: StateManager) -> None:
    """All fields are there."""
    await state.set(S, "m", {"base": 0})
    await asyncio.gather(*[state.merge(S, "m", {f"f{i}": i}) for i in range(40)])
    assert await state.get(S, "m") == {"base": 0} | {f"f{i}": i for i in range(40)}


async def test_removing_fields_counts_only_those_that_are_there(state: StateManager) -> None:
    """Twice the same name is once."""
    await state.merge(S, "m", {"a": 1, "b": 2, "c": 3})
    assert await state.merge(S, "m", {}, remove=["a", "a", "missing"]) == 2
    assert await state.merge(S, "m", {"d": 4}, remove=["b", "b"]) == 2
    assert await state.get(S, "m") == {"c": 3, "d": 4}


@pytest.mark.parametrize("before", ["missing", "map", "dict"])
async def test_a_field_that_is_set_and_removed_is_gone(state: StateManager, before: str) -> None:
    """Whatever lay there: removal comes last."""
    if before == "map":
        await state.merge(S, "m", {"x": 0, "b": 1})
    elif before == "dict":
        await state.set(S, "m", {"x": 0, "b": 1})
    else:
        await state.merge(S, "other", {"x": 0})
    await state.merge(S, "m", {"a": 1, "x": 2}, remove=["a"])
    assert await state.get(S, "m") == ({"x": 2} if before == "missing" else {"x": 2, "b": 1})


async def test_a_map_may_lose_all_its_fields_and_stays_a_map(
    state: StateManager, store: Store
) -> None:
    """Empty it can be read, copied, moved, merged into and deleted."""
    await state.merge(S, "m", {"a": 1})
    assert await state.merge(S, "m", {}, remove=["a"]) == 0
    assert await state.get(S, "m") == {}
    assert (await state.get_all(S), await state.get_many(S, ["m"])) == ({"m": {}}, {"m": {}})
    assert await state.copy_scope(S, "agent:copy") == 1
    assert await state.get("agent:copy", "m") == {}
    store.check()
    assert await state.move_scope(S, "agent:moved") == 1
    assert await state.get(S, "m") is None
    assert await state.get("agent:moved", "m") == {}
    store.check()
    assert await state.merge("agent:moved", "m", {"b": 2}) == 1
    assert await state.get("agent:moved", "m") == {"b": 2}
    assert await state.delete("agent:copy", "m")


async def test_a_removal_from_a_missing_map_begins_an_empty_one(state: StateManager) -> None:
    """As merge always does with a missing key."""
    assert await state.merge(S, "m", {}, remove=["a"]) == 0
    assert await state.get(S, "m") == {}


async def test_fields_need_not_be_text(state: StateManager) -> None:
    """Whatever has one form only can be a field."""
    day = date(2026, 11, 23)
    fields: dict[Any, Any] = {1: "a", "1": "b", None: "c", day: "d", b"x": "e", UUID(int=1): "f"}
    await state.merge(S, "m", fields)
    assert await state.get(S, "m") == fields
    await state.merge(S, "m", {}, remove=[1, None, day])
    assert await state.get(S, "m") == {"1": "b", b"x": "e", UUID(int=1): "f"}


@pytest.mark.parametrize("field", [True, 1.0, Decimal(1), (1,), frozenset({1})])
async def test_a_field_that_equals_another_in_another_form_is_refused(
    state: StateManager, store: Store, field: Any
) -> None:
    """To Python 1, True and 1.0 are one key; on the server they would be three."""
    await state.merge(S, "m", {1: "one"})
    before = store.dump()
    for mapping, remove in (({field: "other"}, []), ({}, [field])):
        with pytest.raises(InvalidArgumentError) as caught:
            await state.merge(S, "m", mapping, remove=remove)
        assert caught.value.argument == "mapping"
    assert store.dump() == before


async def test_20000_elements_work_as_ten_do(state: StateManager, store: Store) -> None:
    """Appended in several calls, read whole and in slices, merged, copied."""
    for start in range(0, 20_000, 10_000):
        assert await state.append(S, "l", *range(start, start + 10_000)) == start + 10_000
    assert await state.append(S, "l", "last") == 20_001
    assert await state.get(S, "l") == [*range(20_000), "last"]
    assert await state.get_slice(S, "l", 19_998) == [19_998, 19_999, "last"]
    assert await state.get_slice(S, "l", -1) == ["last"]
    assert await state.get_slice(S, "l", 5, 8) == [5, 6, 7]
    assert await state.get_slice(S, "l", 8, 5) == []
    fields = {f"field-{i}": i for i in range(20_000)}
    await state.set(S, "m", fields)
    assert await state.merge(S, "m", {"more": 1}, remove=["field-0"]) == 20_000
    found = await state.get(S, "m")
    assert len(found) == 20_000
    assert found["more"] == 1
    await state.copy_scope(S, "agent:copy")
    assert len(await state.get("agent:copy", "m")) == 20_000
    assert await state.get("agent:copy", "l") == [*range(20_000), "last"]


async def test_slices_are_those_of_python(state: StateManager) -> None:
    """On a list that was set whole and on one that was appended to."""
    await state.set(S, "whole", list(range(10)))
    await state.append(S, "grown", *range(10))
    for start in (0, 3, -3, 20, -20):
        for stop in (None, 0, 5, -2, 20, -20):
            expected = list(range(10))[start:stop]
            assert await state.get_slice(S, "whole", start, stop) == expected
            assert await state.get_slice(S, "grown", start, stop) == expected
    assert await state.get_slice(S, "missing") == []
    await state.set(S, "text", "abc")
    with pytest.raises(WrongKindError):
        await state.get_slice(S, "text")


async def test_readers_see_whole_lists_while_they_are_replaced(state: StateManager) -> None:
    """Never the elements of one with the head of another."""
    sizes = {5, 50, 500}

    async def write() -> None:
        for _ in range(5):
            for size in sizes:
                await state.delete(S, "l")
                await state.append(S, "l", *[size] * size)

    async def read() -> None:
        while not writing.done():
            found = await state.get(S, "l")
            assert found is None or (len(set(found)) == 1 and len(found) == found[0])

    writing = asyncio.ensure_future(write())
    await asyncio.gather(writing, *[read() for _ in range(4)])


@pytest.mark.parametrize("kind", ["list", "map"])
async def test_growing_can_keep_set_and_drop_the_ttl(state: StateManager, kind: str) -> None:
    """In the same step, on a new value, a converted one and one that grew."""

    async def grow(key: str, **options: Any) -> Any:
        if kind == "list":
            await state.append(S, key, 1, **options)
        else:
            await state.merge(S, key, {"a": 1}, **options)
        record = await state.get_record(S, key)
        assert record is not None
        return record.expires

    set_first: Any = [0] if kind == "list" else {"z": 0}
    first = await grow("new", ttl=100)
    assert first is not None
    assert await grow("new") == first
    assert await grow("new", ttl=500) > first
    assert await grow("new", ttl=None) is None
    for key, ttl in (("keep", {}), ("drop", {"ttl": None}), ("put", {"ttl": 1000})):
        await state.set(S, key, set_first, ttl=100)
        expires = await grow(key, **ttl)
        assert (expires is None) == (key == "drop")


async def test_an_expired_list_begins_anew(state: StateManager, expiring: Expiring) -> None:
    """Nothing of the old one is left, and the new one stays."""
    await state.append(S, "l", 1, 2, ttl=0.001)
    await state.merge(S, "m", {"a": 1}, ttl=0.001)
    await expiring(S, plain=[1, 2], whole={"a": 1})
    await expiring.gone(S, "l", "m")
    assert await state.append(S, "l", 3) == 1
    assert await state.append(S, "plain", 3) == 1
    assert await state.merge(S, "m", {"b": 2}) == 1
    assert await state.merge(S, "whole", {"b": 2}) == 1
    assert await state.get_all(S) == {"l": [3], "plain": [3], "m": {"b": 2}, "whole": {"b": 2}}
    record = await state.get_record(S, "l")
    assert record is not None
    assert record.expires is None
    assert [c.op for c in await state.history(S, "l")] == ["append", "expired", "append"]


async def test_an_append_keeps_the_class_of_the_record(state: StateManager) -> None:
    """Whatever the call or the rules would give a new key."""
    await state.set(S, "l", [1], state_class=StateClass.ARCHIVE)
    await state.append(S, "l", 2)
    await state.append(S, "l", 3, state_class=StateClass.BULK)
    record = await state.get_record(S, "l")
    assert record is not None
    assert (record.state_class, record.value) == (StateClass.ARCHIVE, [1, 2, 3])


async def test_what_cannot_be_stored_is_refused_with_its_path_before_anything_is_sent(
    state: StateManager, store: Store
) -> None:
    """One wrong element spoils the call and nothing else."""
    await state.set(S, "l", [1])
    before = store.dump()
    with pytest.raises(CodecError) as caught:
        await state.append(S, "l", 1, {"a": [object()]})
    assert ".a[0]" in caught.value.path
    with pytest.raises(CodecError):
        await state.merge(S, "m", {"a": object()})
    with pytest.raises(InvalidArgumentError):
        await state.merge(S, "m", {object(): 1})
    with pytest.raises(InvalidArgumentError, match="items"):
        await state.append(S, "l")
    with pytest.raises(InvalidArgumentError, match="items"):
        await state.append(S, "l", *range(10_001))
    with pytest.raises(InvalidArgumentError, match="mapping"):
        await state.merge(S, "m", {})
    with pytest.raises(InvalidArgumentError, match="mapping"):
        await state.merge(S, "m", dict.fromkeys(range(10_001)))
    with pytest.raises(InvalidArgumentError, match="mapping"):
        await state.merge(S, "m", [("a", 1)])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="remove"):
        await state.merge(S, "m", {}, remove="abc")
    with pytest.raises(InvalidArgumentError, match="remove"):
        await state.merge(S, "m", {}, remove=map(str, range(10_001)))
    assert store.dump() == before
