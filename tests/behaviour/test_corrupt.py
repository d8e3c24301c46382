"""Damaged and foreign records: named, and no harm to the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fix_state import Store, sweep_all, until

from llmspell_dist import StateManager
from llmspell_dist.client import Spell
from llmspell_dist.errors import CorruptRecordError, UnsupportedFormatError

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"

HEADER = b"\x01\x10\x00\x00\x01" + b"\0\0\0\0\0\1\0\0\0\1"
DAMAGED = {
    "empty": b"",
    "one byte": b"\x01",
    "two bytes": b"\x01\x10",
    "half a header": HEADER[:10],
    "cut before created": b"\x01\x10\x01" + HEADER[3:] + b"\0\0",
    "cut before expiry": b"\x01\x10\x03" + HEADER[3:] + b"\0" * 6 + b"\0\0",
    "newer format": b"\x02" + HEADER[1:] + b"\x01",
    "no kind": b"\x01\x00" + HEADER[2:] + b"\x01",
    "unknown kind": b"\x01\x70" + HEADER[2:] + b"\x01" * 20,
    "list without head": b"\x01\x30" + HEADER[2:],
    "map with half a head": b"\x01\x40" + HEADER[2:] + b"\0\0\0\1\0",
    "no value": HEADER,
    "broken value": HEADER + b"\xc1",
    "value and more": HEADER + b"\x01\x02",
    "no number": b"\x01\x20" + HEADER[2:] + b"abc",
    "elements missing": b"\x01\x30" + HEADER[2:] + b"\0\0\0\2\0\0\0\0\0\2gone-1",
    "chunks missing": b"\x01\x50" + HEADER[2:] + b"\0\0\0\2\0\0\0\0\0\2gone-2",
    "fields missing": b"\x01\x40" + HEADER[2:] + b"\0\0\0\2\0\0\0\0\0\2gone-3",
    "bad compression": b"\x01\x10\x04" + HEADER[3:] + b"no zstd",
}
UNWRITABLE = [name for name in list(DAMAGED)[:11] if name != "no kind"]
"""Those whose header cannot be understood by the server, which then will not touch them."""


@pytest.mark.parametrize("name", DAMAGED)
async def test_a_damaged_record_is_named_and_the_others_stay_readable(
    state: StateManager, store: Store, name: str
) -> None:
    """By calls on it and by calls on many; it is still listed."""
    values = {"v": "x", "n": 5, "l": [1], "m": {"a": 1}}
    await state.set_many(S, {"v": "x", "n": 5})
    await state.append(S, "l", 1)
    await state.merge(S, "m", {"a": 1})
    await state.set(S, "bad", 0)
    store.damage(S, "bad", DAMAGED[name])
    reads: list[Callable[[], Awaitable[Any]]] = [
        lambda: state.get(S, "bad"),
        lambda: state.get_record(S, "bad"),
        lambda: state.get_many(S, ["v", "bad", "l"]),
        lambda: state.get_all(S),
        lambda: state.items_page(S),
        lambda: state.update(S, "bad", lambda v: v),
        lambda: state.transaction().get(S, "bad"),
    ]
    for read in reads:
        with pytest.raises(CorruptRecordError) as caught:
            await read()
        assert (caught.value.scope, caught.value.key) == (S, "bad")
        assert isinstance(caught.value, UnsupportedFormatError) == (name == "newer format")
    for key, value in values.items():
        assert await state.get(S, key) == value
    assert await state.get_many(S, values) == values
    assert sorted([key async for key in state.keys(S)]) == ["bad", "l", "m", "n", "v"]
    assert await state.exists(S, "bad")
    assert await state.count(S) == 5
    await state.set(S, "v", "y")
    assert await state.append(S, "l", 2) == 2


@pytest.mark.parametrize("name", UNWRITABLE)
async def test_a_record_that_cannot_be_understood_is_not_overwritten(
    state: StateManager, store: Store, name: str
) -> None:
    """It may be a newer release's; nothing of the refused call is done."""
    await state.set(S, "bad", 0)
    store.damage(S, "bad", DAMAGED[name])
    dump = store.dump()
    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: state.set(S, "bad", 1),
        lambda: state.set(S, "bad", 1, ttl=5),
        lambda: state.set_many(S, {"good": 1, "bad": 1}),
        lambda: state.delete(S, "bad"),
        lambda: state.delete_many(S, ["bad"]),
        lambda: state.increment(S, "bad"),
        lambda: state.append(S, "bad", 1),
        lambda: state.merge(S, "bad", {"a": 1}),
        lambda: state.expire(S, "bad", 5),
        lambda: state.persist(S, "bad"),
    ]
    for write in writes:
        with pytest.raises(CorruptRecordError) as caught:
            await write()
        assert (caught.value.scope, caught.value.key) == (S, "bad")
    for transfer in (state.copy_scope, state.move_scope):
        with pytest.raises(CorruptRecordError) as caught:
            await transfer(S, "user:u")
        assert (caught.value.scope, caught.value.key) == (S, "bad")
    assert store.dump() == dump
    assert await state.clear(S) == 1
    assert await state.get_all(S) == {}


async def test_a_damaged_record_in_the_expiry_index_does_not_stop_the_sweeper(
    state: StateManager, spell: Spell, store: Store
) -> None:
    """Nor does a damaged scope: the others are swept."""
    for scope in ("user:a", "user:b", S):
        await state.set_many(scope, {"k": 1, "bad": 1}, ttl=0.001)
    last = store.record(S, "k").expires_ms
    store.damage(S, "bad", b"\x01\x10")
    store.damage("user:a", "$$", b"\x07")
    await until(lambda: store.raw.now_ms() > last)
    assert await sweep_all(spell) == 3
    assert await sweep_all(spell) == 0
    assert store.field(S, "k") is None
    assert store.field("user:b", "k") is None


@pytest.mark.library_only("there is no log through a sidecar")
async def test_a_damaged_log_entry_is_named(
    state: StateManager, spell: Spell, store: Store
) -> None:
    """By its revision; the present is not affected."""
    await state.set(S, "k", 1)
    log = store.space.log("0")
    store.intact = False
    for fields in (
        ("x", "y"),
        ("c", b"\x09", "m", "", "o", "x" * 14),
        ("c", b"\x01\x01", "m", "", "o", "o"),
    ):
        entry = store.raw("XADD", log, "*", *fields)
        with pytest.raises(CorruptRecordError) as caught:
            await spell.log.entries()
        assert (caught.value.scope, caught.value.key) == ("log", entry.decode())
        store.raw("XDEL", log, entry)
    assert await state.get(S, "k") == 1


async def test_a_page_of_values_names_the_damaged_one_and_keys_go_on(
    state: StateManager, store: Store
) -> None:
    """So that whoever must can find it and go around it."""
    await state.set_many(S, {f"k{i}": i for i in range(10)})
    store.damage(S, "k5", b"\x01")
    with pytest.raises(CorruptRecordError) as caught:
        async for _ in state.items(S):
            pass
    assert caught.value.key == "k5"
    readable = {}
    async for key in state.keys(S):
        if key != caught.value.key:
            readable[key] = await state.get(S, key)
    assert readable == {f"k{i}": i for i in range(10) if i != 5}


@pytest.mark.library_only("over HTTP every read gives the revision, so its header must make sense")
@pytest.mark.parametrize(
    "header",
    [b"\x01\x1f\x00\x00\x01" + b"\0" * 10, b"\x01\x10\x00\x00\x01" + b"\xff" * 10],
    ids=["class 15", "year 10889"],
)
async def test_a_header_that_makes_no_sense_is_said_to_be_corrupt(
    state: StateManager, store: Store, header: bytes
) -> None:
    """The value may still be read; what is known about it cannot be given."""
    await state.set(S, "k", "x")
    store.damage(S, "k", header + b"\xa1x")
    assert await state.get(S, "k") == "x"
    with pytest.raises(CorruptRecordError) as caught:
        await state.get_record(S, "k")
    assert (caught.value.scope, caught.value.key) == (S, "k")
