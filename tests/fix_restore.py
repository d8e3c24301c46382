"""What tests of restores share: snapshots built from what lies in Redis, and what a scope is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
from fix_state import Raw, Store

from llmspell_dist.backup.items import (
    Elements,
    Item,
    Logged,
    Missing,
    Record,
    ScopeRecord,
    ScopeStart,
    pack_elements,
    pack_record,
    pack_scope,
    pack_scope_record,
)
from llmspell_dist.backup.restoring import (
    Placement,
    Staging,
    Swap,
    Swapped,
    abandon,
    apply,
    check,
    swap,
)
from llmspell_dist.changes import Op, unpack_parts
from llmspell_dist.records import Kind, unpack_head, unpack_meta, unpack_record
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope


class Value(NamedTuple):
    """A key as its user could tell it, in stored bytes: all but its revision."""

    kind: int
    state_class: int
    flags: int
    schema_version: int
    created_ms: int
    expires_ms: int
    content: Any


def elements_of(raw: Raw, base: bytes, kind: int, generation: str) -> list[bytes]:
    """Return the elements of a generation as a backup reads them."""
    key = base + b":p:" + generation.encode()
    found: list[bytes] = raw("HGETALL", key) if kind == Kind.MAP else raw("LRANGE", key, 0, -1)
    return found


def record_items(raw: Raw, base: bytes, key: bytes, record: bytes) -> list[Item]:
    """Return a record with its elements as items."""
    stored = unpack_record(record, "", "")
    if stored.kind < Kind.LIST:
        return [Record(key, record)]
    head = unpack_head(stored.payload, "", "")
    parts = elements_of(raw, base, stored.kind, head.generation)
    if head.count and not parts:
        return [Record(key, record), Missing()]
    middle = len(parts) // 4 * 2
    pieces = [Elements(stored.kind, part) for part in (parts[:middle], parts[middle:]) if part]
    return [Record(key, record), *pieces]


def scan(store: Store, scopes: Iterable[str]) -> list[Item]:
    """Return everything of some scopes as items."""
    items: list[Item] = []
    for scope in scopes:
        base = store.hash_of(scope)
        flat = store.raw("HGETALL", base)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if not fields:
            continue
        items += [ScopeStart(scope.encode()), ScopeRecord(fields.pop(b"$$"))]
        for key, record in fields.items():
            items += record_items(store.raw, base, key, record)
    return items


def packed(items: Iterable[Item]) -> bytes:
    """Return items of records as the bytes of an object."""
    found = []
    for item in items:
        if isinstance(item, ScopeStart):
            found.append(pack_scope(item.text))
        elif isinstance(item, ScopeRecord):
            found.append(pack_scope_record(item.raw))
        elif isinstance(item, Record):
            found.append(pack_record(*item))
        elif isinstance(item, Elements):
            found.append(pack_elements(*item))
    return b"".join(found)


def log_items(store: Store, after: Revision | None, upto: Revision | None = None) -> list[Logged]:
    """Return a stretch of the log as items."""
    start = "-" if after is None else f"({after}"
    stop = "+" if upto is None else str(upto)
    found = []
    for entry_id, fields in store.raw("XRANGE", store.space.log("0"), start, stop):
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        packed = Revision.parse(entry_id).packed
        found.append(Logged(packed, named[b"c"], named[b"m"], named[b"o"]))
    return found


def unlogged(entries: Iterable[Logged]) -> set[tuple[str, str]]:
    """Return the keys of which some change does not say what it wrote."""
    found = set()
    for entry in entries:
        revision = Revision.unpack(entry.revision)
        assert revision is not None
        for one in unpack_parts(revision, entry.changes, entry.meta, entry.operation).changes:
            if one.op in (Op.SET, Op.INCREMENT, Op.APPEND, Op.MERGE) and one.payload is None:
                found.add((one.scope, one.key))
            elif one.op == Op.ADOPT:
                assert one.payload is not None
                if len(one.payload) == 11 + one.payload[0]:
                    found.add((one.scope, one.key))
    return found


def contents(
    store: Store, scope: str, *, now_ms: int, base: bytes | None = None
) -> dict[str, Value]:
    """Return what is in a scope, without what has expired."""
    base = base or store.hash_of(scope)
    flat = store.raw("HGETALL", base)
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    fields.pop(b"$$", None)
    found = {}
    for key, record in fields.items():
        stored = unpack_record(record, scope, key.decode())
        if 0 < stored.expires_ms <= now_ms:
            continue
        content: Any = stored.payload
        if stored.kind >= Kind.LIST:
            head = unpack_head(stored.payload, scope, "")
            content = elements_of(store.raw, base, stored.kind, head.generation)
            if stored.kind == Kind.BLOB:
                content = hashlib.sha256(b"".join(content)).hexdigest()
            if stored.kind == Kind.MAP:
                content = dict(zip(content[::2], content[1::2], strict=True))
        found[key.decode()] = Value(
            stored.kind,
            stored.state_class,
            stored.flags & 12,
            stored.schema_version,
            stored.created_ms,
            stored.expires_ms,
            content,
        )
    return found


def twice(steps: Any) -> Any:
    """Send everything twice, as after a lost connection: together again what left together."""
    given: Any = None
    try:
        while True:
            request = steps.send(given)
            yield request
            given = yield request
    except StopIteration as done:
        return done.value


class Restores:
    """Restores driven as the service drives them."""

    def __init__(self, spell: Any, store: Store) -> None:
        self.run = spell.state._driver.run
        self.core = spell.state._driver.core
        self.store = store
        self.inexact: dict[tuple[str, str], str] = {}

    def staging(self, **options: Any) -> Staging:
        """A restore that has not begun."""
        return Staging(self.core, backup="20261126T000000Z-00000000", **options)

    async def restore(
        self,
        items: Iterable[Item],
        segments: Iterable[Iterable[Item]] = (),
        *,
        upto: Revision | None = None,
        scopes: Iterable[str] | None = None,
        mapping: Callable[[str], Scope | None] = Scope.parse,
        force: bool = False,
        **options: Any,
    ) -> list[Swapped]:
        """Lay down, repeat, check and swap; the scopes are those that the items begin."""
        items = list(items)
        staging = self.staging(placement=Placement(mapping=mapping), **options)
        await self.run(staging.load(items))
        named = dict.fromkeys(item.text for item in items if isinstance(item, ScopeStart))
        for segment in segments:
            await self.run(apply(staging, segment, upto or Revision(2**47, 0)))
        if scopes is not None:
            named.update(dict.fromkeys(scope.encode() for scope in scopes))
        swaps = []
        for source in named:
            place = staging.place(source)
            if place is not None:
                swaps.append(Swap(place.scope, source))
        await self.run(check(staging, swaps))
        done: list[Swapped] = await self.run(swap(staging, swaps, force=force))
        await self.run(abandon(staging))
        self.inexact = staging.inexact
        return done

    def meta(self, scope: str) -> Any:
        return unpack_meta(self.store.raw("HGET", self.store.hash_of(scope), "$$"), scope)


@pytest.fixture
def restores(spell: Any, store: Store) -> Restores:
    """Restores of an open client."""
    return Restores(spell, store)
