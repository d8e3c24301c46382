"""What was laid down, or lies there live, counted and read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llmspell_dist.backup.digest import RecordDigest, ScopeDigest
from llmspell_dist.backup.errors import RestoreRefusedError
from llmspell_dist.records import META_FIELD, Kind, unpack_head, unpack_meta, unpack_record
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.state.scopes import WITH_RECORDS, Stretch, split_cursor

if TYPE_CHECKING:
    from llmspell_dist.backup.restoring.staging import Staging
    from llmspell_dist.backup.restoring.swapping import Swap
    from llmspell_dist.records import Head
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["check", "digest_of", "digest_staged"]

CHECK_EXPIRED: Final = 500
CHECK_SCOPES: Final = 200
PAGE_KEYS: Final = 200
PAGE_ELEMENTS: Final = 500
PAGE_BYTES: Final = 128 * 1024


def check(staging: Staging, scopes: Sequence[Swap]) -> Steps[list[tuple[int, int]]]:
    """Drop what has expired, and count; per scope its keys and their bytes.

    A scope that was not laid down as it was counted raises `RestoreRefusedError`.
    """
    found: dict[int, tuple[int, int]] = {}
    by_shard: dict[str, list[int]] = {}
    places = [staging.place_of(one.scope, one.source or b"") for one in scopes]
    for position, place in enumerate(places):
        by_shard.setdefault(place.shard, []).append(position)
    for name, positions in by_shard.items():
        shard = yield from staging.shard(name)
        at = 0
        while at < len(positions):
            part = positions[at : at + CHECK_SCOPES]
            said = [text for one in part for text in (places[one].name, places[one].about)]
            reply = yield ScriptCall(
                load_script("restore_check"),
                (*shard.keys, *(places[one].key for one in part)),
                (*shard.head, b"%d" % CHECK_EXPIRED, *said),
                bulk=True,
            )
            if not reply:
                raise staging.refusal(b"GONE")
            more, *counts = reply
            for position, count, size, fields in zip(
                part, counts[::3], counts[1::3], counts[2::3], strict=False
            ):
                if count != fields:
                    reason = f"{count} keys were counted, {fields} are there"
                    raise RestoreRefusedError(places[position].scope.text, reason)
                found[position] = count, size
            done = len(counts) // 3
            at += done - 1 if more else done
    return [found[position] for position in range(len(scopes))]


def digest_staged(
    staging: Staging, scope: Scope, source: bytes, *, created: bool = True
) -> Steps[ScopeDigest]:
    """Read back what was laid down for a scope."""
    place = staging.place_of(scope, source)
    return (yield from _Reading(place.key, place.base, scope.text, created=created).whole())


def digest_of(core: Core, scope: Scope, *, created: bool = True) -> Steps[ScopeDigest]:
    """Read a live scope; of one that is written to meanwhile it says nothing."""
    key = core.keyspace.scope(scope)
    return (yield from _Reading(key, key, scope.text, created=created).whole())


class _Reading:
    """Reads a hash of records page by page, without what has expired by the server's clock."""

    def __init__(self, key: bytes, base: bytes, text: str, *, created: bool) -> None:
        self.key = key
        self.base = base
        """What the keys of its elements begin with."""
        self.text = text
        self.created = created

    def whole(self) -> Steps[ScopeDigest]:
        """Read all of it."""
        found = yield from self._read(None)
        raw = yield Command(pack(b"HGET", self.key, META_FIELD), "HGET", bulk=True)
        if found.count > unpack_meta(raw, self.text).count:
            found = yield from self._read(set())  # the table shrank, so some keys came twice
        return found

    def _read(self, seen: set[bytes] | None) -> Steps[ScopeDigest]:
        found = ScopeDigest()
        cursor: str | None = None
        while True:
            start, process = split_cursor(cursor, PAGE_KEYS)
            arguments = (start, b"", b"%d" % PAGE_KEYS, WITH_RECORDS, process)
            reply = yield ScriptCall(load_script("scan"), (self.key,), arguments, bulk=True)
            page = Stretch.read(reply, start, process)
            if page.again:
                found, seen = ScopeDigest(), None if seen is None else set()
            for field, raw in zip(page.found[::2], page.found[1::2], strict=True):
                if seen is not None:
                    if field in seen:
                        continue
                    seen.add(field)
                found.add((yield from self._key(field, raw)))
            cursor = page.cursor
            if cursor is None:
                return found

    def _key(self, field: bytes, raw: bytes) -> Steps[int]:
        name = field.decode("utf-8", "replace")
        stored = unpack_record(raw, self.text, name)
        digest = RecordDigest(field, stored, created=self.created)
        if stored.kind >= Kind.LIST:
            head = unpack_head(stored.payload, self.text, name)
            key = self.base + b":p:" + head.generation.encode()
            read = self._fields(digest, key) if stored.kind == Kind.MAP else None
            found = yield from read or self._parts(digest, key, head)
            if found != head.count:
                reason = f"{name!r} has {found} of {head.count} elements"
                raise RestoreRefusedError(self.text, reason)
        return digest.value()

    def _parts(self, digest: RecordDigest, key: bytes, head: Head) -> Steps[int]:
        size = max(1, min(PAGE_ELEMENTS, PAGE_BYTES * head.count // max(1, head.size)))
        found = 0
        for at in range(0, head.count, size):
            stop = min(at + size, head.count) - 1
            request = pack(b"LRANGE", key, b"%d" % at, b"%d" % stop)
            parts = yield Command(request, "LRANGE", bulk=True)
            digest.add(parts)
            found += len(parts)
        return found

    def _fields(self, digest: RecordDigest, key: bytes) -> Steps[int]:
        cursor, known = b"0", set()
        while True:
            request = pack(b"HSCAN", key, cursor, b"COUNT", b"%d" % PAGE_ELEMENTS)
            cursor, flat = yield Command(request, "HSCAN", bulk=True)
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                if name not in known:
                    known.add(name)
                    digest.add((name, value))
            if cursor == b"0":
                return len(known)
