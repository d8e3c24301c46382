"""A reader of backups that knows nothing of the library.

It was written from docs/design/backup-format.md alone; what it cannot read, the page does not
specify. Damage is an AssertionError. It asks a target for names and bytes only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import lz4.frame
import msgpack
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIB = 1 << 20

# --- keys, objects, items, manifests


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256."""
    extracted = hmac.digest(salt, key, "sha256")
    block, out = b"", b""
    while len(out) < length:
        block = hmac.digest(extracted, block + info + bytes((len(out) // 32 + 1,)), "sha256")
        out += block
    return out[:length]


def decode_key(stored: bytes, secret: bytes) -> tuple[str, bytes]:
    """Return id and data key from a wrapped key of the providers file and environment."""
    fields = json.loads(stored)
    blob = base64.b64decode(fields["wrapped"])
    context = b"llmspell-dist/backup/" + fields["key"].encode()
    bound = b"llmspell-dist wrapped key 1\0" + fields["version"].encode() + b"\0" + context
    assert fields["format"] == blob[0] == 1
    key = AESGCM(secret).decrypt(blob[1:13], blob[13:], bound)
    known = b"llmspell-dist backup data key 1" + bytes.fromhex(fields["key"])
    assert hmac.digest(key, known, "sha256")[:16].hex() == fields["check"]
    return fields["key"], key


def decode_object(data: bytes, name: str, keys: dict[str, bytes]) -> tuple[int, bytes]:
    """Return kind and content of an object, `name` its hash."""
    assert hashlib.sha256(data).hexdigest() == name
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    assert data[:9] == b"LSBACKUP\x01"
    kind, compression, encrypted, size = data[9], data[10], data[11], data[12:16]
    at, end, overhead = (96, len(data) - 32, 16) if encrypted else (16, len(data) - 32, 0)
    header = hashlib.sha256(data[:at]).digest()
    aead = None
    if encrypted:
        info = b"llmspell-dist backup object 1" + data[:32]
        derived = hkdf(keys[data[16:32].hex()], data[32:64], info, 64)
        assert derived[32:] == data[64:96]
        aead = AESGCM(derived[:32])
    pieces: list[bytes] = []
    last = False
    while not last:
        word = int.from_bytes(data[at : at + 4], "big")
        last, length = word >= 1 << 31, word % (1 << 31)
        assert length <= MIB + overhead if last else length == MIB + overhead
        body = data[at + 4 : at + 4 + length]
        if aead is not None:
            number = len(pieces)
            bound = header + number.to_bytes(4, "big") + bytes((last,))
            body = aead.decrypt(number.to_bytes(12, "big"), body, bound)
        pieces.append(body)
        at += 4 + length
    assert at == end
    content = DECOMPRESS[compression](b"".join(pieces))
    assert len(content) == int.from_bytes(size, "big")
    return kind, content


def decode_manifest(stored: bytes, key: bytes | None) -> dict[str, Any]:
    """Return the fields of a manifest, its hash and its authentication verified."""

    def canonical(*without: str) -> bytes:
        some = {name: field for name, field in fields.items() if name not in without}
        text = json.dumps(some, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()

    fields: dict[str, Any] = json.loads(stored)
    assert fields["format"] == 1
    assert hashlib.sha256(canonical("digest")).hexdigest() == fields["digest"]
    if key is not None:
        mac_key = hmac.digest(key, b"llmspell-dist/manifest", "sha256")
        right = hmac.digest(mac_key, canonical("mac", "digest"), "sha256")
        assert right.hex() == fields["mac"]
    return fields


DECOMPRESS: dict[int, Callable[[bytes], bytes]] = {
    0: lambda packed: packed,
    1: lambda packed: zlib.decompress(packed, 31),
    2: lambda packed: zstandard.ZstdDecompressor().decompress(packed),
    3: lz4.frame.decompress,
}
# By tag: bytes of the numbers before the lengths; bytes of each length of what follows them.
ITEMS = {
    "S": ([], [2]),
    "M": ([], [2]),
    "R": ([], [2, 4]),
    "E": ([1, 4], [4]),
    "C": ([], [2]),
    "X": ([], []),
    "L": ([10], [4, 4, 4]),
    "U": ([10], [2]),
    "N": ([], [4, 4]),
}


def decode_items(content: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Yield tag and fields of each item: numbers as bytes, then what the lengths told."""
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        assert at <= len(content)
        return content[at - size : at]

    while at < len(content):
        tag = take(1).decode()
        numbers, lengths = ITEMS[tag]
        fields = [take(size) for size in numbers]
        sizes = [int.from_bytes(take(size), "big") for size in lengths]
        yield tag, fields + [take(size) for size in sizes]


# --- a moment


@dataclass
class Value:
    """What a key holds: a payload, or elements."""

    kind: int
    flags: int
    payload: bytes = b""
    generation: bytes = b""
    expires: int = 0
    parts: list[bytes] = field(default_factory=list)
    """Of a list or blob."""
    fields: dict[bytes, bytes] = field(default_factory=dict)
    """Of a map."""

    @property
    def plain(self) -> Any:
        """The value that a user sees."""
        if self.kind == 3:
            return [msgpack.unpackb(part) for part in self.parts]
        if self.kind == 4:
            return {
                msgpack.unpackb(name): msgpack.unpackb(one) for name, one in self.fields.items()
            }
        payload = b"".join(self.parts) if self.kind == 5 else self.payload
        if self.kind == 2:
            return float(payload) if b"." in payload or b"e" in payload else int(payload)
        return msgpack.unpackb(DECOMPRESS[2](payload) if self.flags & 4 else payload)

    def add(self, parts: list[bytes]) -> None:
        """Add elements."""
        if self.kind == 4:
            self.fields.update(zip(parts[::2], parts[1::2], strict=True))
        else:
            self.parts += parts


def framed(raw: bytes, count: int = 1 << 32) -> tuple[list[bytes], bytes]:
    """Return `count` parts with 4 bytes of length each, and what follows them."""
    parts: list[bytes] = []
    while raw and len(parts) < count:
        size = int.from_bytes(raw[:4], "big")
        parts.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return parts, raw


class Moment:
    """The state that is made by repeating history."""

    def __init__(self) -> None:
        self.scopes: dict[bytes, dict[bytes, Value]] = {}

    def read(self, content: bytes) -> None:
        """Load records, or apply a segment."""
        keys: dict[bytes, Value] = {}
        key, value = b"", Value(0, 0)
        for tag, fields in decode_items(content):
            if tag == "S":
                keys = self.scopes.setdefault(fields[0], {})
            elif tag == "R":
                key, value = fields[0], self._record(fields[1])
                keys[key] = value
            elif tag == "C":
                key, value = fields[0], keys[fields[0]]
            elif tag == "E":
                value.add(framed(fields[2])[0])
            elif tag == "X":
                del keys[key]
            elif tag == "L":
                self._entry(fields[1])

    def _record(self, raw: bytes) -> Value:
        assert raw[0] == 1
        kind, flags, at = raw[1] >> 4, raw[2], 15
        if flags & 1:
            at += 6
        expires = 0
        if flags & 2:
            expires, at = int.from_bytes(raw[at : at + 6], "big"), at + 6
        generation = raw[at + 10 :] if kind > 2 else b""
        return Value(kind, flags, raw[at:], generation, expires)

    def _entry(self, raw: bytes) -> None:
        assert raw[0] == 1
        at, scope = 1, b""
        while at < len(raw):
            op, kind, state_class, flags = raw[at], raw[at + 1] >> 4, raw[at + 1] & 15, raw[at + 2]
            key_size, size, scope_size = (
                int.from_bytes(raw[at + start : at + stop], "big")
                for start, stop in ((5, 7), (7, 11), (11, 13))
            )
            expires = int.from_bytes(raw[at + 33 : at + 39], "big")
            at += 39
            if scope_size:
                scope, at = raw[at : at + scope_size], at + scope_size
            key, at = raw[at : at + key_size], at + key_size
            payload = None
            if op < 128:
                payload, at = raw[at : at + size], at + size
            keys = self.scopes.setdefault(scope, {})
            if op % 128 in {2, 3}:
                keys.pop(key, None)
            elif op % 128 == 9 or (op % 128 == 13 and scope_size):
                keys.clear()
            elif op % 128 == 4:
                if key in keys:
                    keys[key].expires = expires
            elif payload is None:
                if state_class == 3:
                    keys.pop(key, None)
            elif op in {1, 5, 6, 7, 8}:
                new = Value(kind, flags, payload, expires=expires)
                self._change(op, keys, key, new)
        assert at == len(raw)

    def _change(self, op: int, keys: dict[bytes, Value], key: bytes, new: Value) -> None:
        if op in {1, 5}:
            keys[key] = new
            return
        start = 0 if op == 8 else 4
        count, stop = int.from_bytes(new.payload[:4], "big"), start + 1 + new.payload[start]
        new.generation, rest = new.payload[start + 1 : stop], new.payload[stop:]
        if op == 8:
            if rest[10:]:
                whole = msgpack.unpackb(rest[10:], strict_map_key=False)
                flat = [one for pair in whole.items() for one in pair] if new.kind == 4 else whole
                new.add([msgpack.packb(one) for one in flat])
                keys[key] = new
            return
        old = keys.get(key)
        mine = old if old is not None and old.generation == new.generation else None
        if op == 6:
            parts, _ = framed(rest)
            if mine is None and count == len(parts):
                keys[key] = mine = new
            if mine is not None:
                have = len(mine.parts) - (count - len(parts))
                assert have >= 0
                mine.parts += parts[have:]
        else:
            parts, rest = framed(rest[2:], 2 * int.from_bytes(rest[:2], "big"))
            gone, _ = framed(rest[2:])
            if mine is None and count == len(set(parts[::2]) - set(gone)):
                keys[key] = mine = new
            if mine is not None:
                mine.add(parts)
                for name in gone:
                    mine.fields.pop(name, None)
        if mine is not None:
            mine.expires = new.expires


def read_backup(target: Any, namespace: str, backup_id: str, secret: bytes) -> Moment:
    """Return the state as of a backup: of those that it goes on from, then its own."""
    keys = dict(
        decode_key(target.get(info.name), secret) for info in target.list(f"{namespace}/keys/")
    )
    chain: list[dict[str, Any]] = []
    while backup_id:
        stored = target.get(f"{namespace}/backups/{backup_id}/manifest.json")
        index = [one for one in json.loads(stored)["objects"] if one["kind"] == "index"]
        chain.insert(0, decode_manifest(stored, keys[index[0]["key"]]))
        backup_id = chain[0]["parent"]
    moment = Moment()
    for manifest in chain:
        for kind in ("records", "segment"):
            for one in manifest["objects"]:
                if one["kind"] == kind:
                    name = f"{namespace}/objects/{one['digest'][:2]}/{one['digest']}"
                    moment.read(decode_object(target.get(name), one["digest"], keys)[1])
    return moment
