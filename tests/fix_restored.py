"""Scopes that were put back, done with plain commands: what a restore leaves for those who read."""

from __future__ import annotations

import secrets
from typing import Any

import msgpack
import pytest
from fix_state import Raw, Store

from llmspell_dist.records import (
    RESTORED,
    Kind,
    pack_record,
    unpack_head,
    unpack_record,
)
from llmspell_dist.revision import Revision

_SWAP = """
local log, due, trash, hash, staged = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local text, payload, meta = ARGV[1], ARGV[2], ARGV[3]
local count, size = tonumber(ARGV[4]), tonumber(ARGV[5])
local char, floor, sub = string.char, math.floor, string.sub
local function p16(n) return char(floor(n / 256) % 256, n % 256) end
local function p32(n) return p16(floor(n / 65536)) .. p16(n % 65536) end
local function p48(n) return p16(floor(n / 4294967296)) .. p32(n % 4294967296) end
local none10, none6 = string.rep('\\0', 10), string.rep('\\0', 6)
local old = redis.call('HGET', hash, '$$')
local before, tail = none10, string.rep('\\0', 11)
if old then
  before, tail = sub(old, 2, 11), sub(old, 22)
end
local frame = char(13, 0, 0) .. '\\0\\0\\0\\0' .. p32(#payload) .. p16(#text) .. none10 .. before
  .. none6 .. text .. payload
local operation = string.rep('\\0', 14)
local id = redis.call('XADD', log, '*', 'c', '\\1' .. frame, 'm', meta, 'o', operation)
local ms, seq = string.match(id, '^(%d+)-(%d+)$')
local revision = p48(tonumber(ms)) .. p32(tonumber(seq))
redis.call('UNLINK', hash, hash .. ':ttl')
if redis.call('EXISTS', hash .. ':g') == 1 then
  local aside = hash .. ':g:' .. id
  redis.call('RENAME', hash .. ':g', aside)
  redis.call('SADD', trash, aside)
end
for _, part in ipairs({ '', ':ttl', ':g' }) do
  if redis.call('EXISTS', staged .. part) == 1 then
    redis.call('RENAME', staged .. part, hash .. part)
  end
end
redis.call('HSET', hash, '$$', '\\1' .. revision .. p32(count) .. p48(size) .. tail)
redis.call('ZADD', due, '0', text)
local function sized(part) return p32(#part) .. part end
if redis.call('PUBLISH', hash, revision .. before) ~= 0 and ARGV[6] == '1' then
  redis.call('PUBLISH', hash, '\\1' .. revision .. before .. revision
    .. sized('\\1' .. frame) .. sized(meta) .. sized(operation))
end
return revision
"""

Kept = dict[bytes, tuple[bytes, list[bytes]]]
"""The records of a scope, with the elements of composites."""


class Restoring:
    """One restore: `begin`, then `swap` a scope at a time."""

    def __init__(self, raw: Raw, store: Store) -> None:
        self.raw = raw
        self.store = store
        self.id = secrets.token_hex(4)
        self.revision = Revision(0, 0)
        """That of everything that it puts there."""

    def keep(self, scope: str) -> Kept:
        """Return what a scope holds, as a backup does."""
        place = self.store.hash_of(scope)
        flat = self.raw("HGETALL", place)
        kept: Kept = {}
        for field, record in zip(flat[::2], flat[1::2], strict=True):
            if field != b"$$":
                kept[field] = record, self._elements(scope, field, record)
        return kept

    def _elements(self, scope: str, field: bytes, record: bytes) -> list[bytes]:
        stored = unpack_record(record, scope, field.decode())
        if not Kind(stored.kind).composite:
            return []
        elements = self._place(scope, unpack_head(stored.payload, scope, "").generation)
        read = ("HGETALL", elements) if stored.kind == Kind.MAP else ("LRANGE", elements, 0, -1)
        found: list[bytes] = self.raw(*read)
        return found

    def _place(self, scope: str, generation: str) -> bytes:
        return self.store.hash_of(scope) + b":p:" + generation.encode()

    def begin(self) -> Revision:
        """Note the beginning in the log; the revision is that of all that is put back."""
        payload = msgpack.packb({"id": self.id})
        frame = b"\x0d" + bytes(6) + len(payload).to_bytes(4, "big") + bytes(28) + payload
        request = ("c", b"\x01" + frame, "m", b"", "o", bytes(14))
        self.revision = Revision.parse(self.raw("XADD", self.store.space.log("0"), "*", *request))
        return self.revision

    def swap(
        self, scope: str, kept: Kept, *, meta: dict[str, str] | None = None, tell: bool = True
    ) -> Revision:
        """Put a scope back; return the revision that it has then."""
        place = self.store.hash_of(scope)
        staged = place + b":restore:" + self.id.encode()
        size = 0
        for field, (record, elements) in kept.items():
            new = self._staged(scope, staged, record, elements)
            self.raw("HSET", staged, field, new)
            size += len(field) + len(new) + sum(map(len, elements))
            expires = unpack_record(new, scope, "").expires_ms
            if expires:
                self.raw("ZADD", staged + b":ttl", expires, field)
        payload = {
            "i": self.id,
            "r": self.revision.packed,
            "b": "20260101T000000Z-00000000",
            "n": len(kept),
        }
        space = self.store.space
        keys = (space.log("0"), space.due("0"), space.trash("0"), place, staged)
        told = (msgpack.packb(meta) if meta else b"", len(kept), size, int(tell))
        packed = self.raw("EVAL", _SWAP, len(keys), *keys, scope, msgpack.packb(payload), *told)
        revision = Revision.unpack(packed)
        assert revision is not None
        return revision

    def _staged(self, scope: str, staged: bytes, record: bytes, elements: list[bytes]) -> bytes:
        stored = unpack_record(record, scope, "")
        payload = stored.payload
        if Kind(stored.kind).composite:
            head = unpack_head(payload, scope, "")
            generation = secrets.token_hex(6)
            sizes = head.count.to_bytes(4, "big") + head.size.to_bytes(6, "big")
            payload = sizes + generation.encode()
            if elements:
                push = "HSET" if stored.kind == Kind.MAP else "RPUSH"
                self.raw(push, self._place(scope, generation), *elements)
            self.raw("SADD", staged + b":g", generation)
        flags = stored.flags | RESTORED
        return pack_record(stored._replace(flags=flags, revision=self.revision, payload=payload))

    def whole(self, scope: str, kept: Kept, **options: Any) -> Revision:
        """Put a scope back at once."""
        self.begin()
        return self.swap(scope, kept, **options)


@pytest.fixture
def restoring(raw: Raw, store: Store) -> Restoring:
    """What puts scopes of the test's namespace back."""
    return Restoring(raw, store)
