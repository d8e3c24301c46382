"""What a key holds, as a digest that a backup and its restore share.

Not part of it are what a restore changes: revisions, the names of generations, the order of a map.
When a key was created is left out if that is asked for: the log does not tell it of keys that were
copied or moved from another scope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from llmspell_dist.records import CODEC_FLAGS, Kind, StoredRecord

__all__ = ["RecordDigest", "ScopeDigest"]

_MODULUS: Final = 2**256


class RecordDigest:
    """The digest of one key; elements of composites are added piece by piece."""

    def __init__(self, key: bytes, stored: StoredRecord, *, created: bool = True) -> None:
        self._kind = stored.kind
        payload = b"" if stored.kind >= Kind.LIST else stored.payload
        head = (
            *(stored.kind, stored.state_class, stored.flags & CODEC_FLAGS),
            *(stored.schema_version, stored.created_ms if created else 0, stored.expires_ms),
            *(len(key), len(payload)),
        )
        self._hash = hashlib.sha256(repr(head).encode() + key + payload)
        self._fields = 0
        self._count = 0

    def add(self, parts: Sequence[bytes]) -> None:
        """Add elements in order; of maps fields and values in turn, in any order."""
        self._count += len(parts)
        if self._kind != Kind.MAP:
            for part in parts:
                self._hash.update(len(part).to_bytes(4, "big") + part)
            return
        for field, value in zip(parts[::2], parts[1::2], strict=True):
            pair = len(field).to_bytes(4, "big") + field + value
            one = int.from_bytes(hashlib.sha256(pair).digest(), "big")
            self._fields = (self._fields + one) % _MODULUS

    def value(self) -> int:
        """Return the digest as a number below 2**256; those of many keys can be summed."""
        self._hash.update(self._count.to_bytes(8, "big") + self._fields.to_bytes(32, "big"))
        return int.from_bytes(self._hash.digest(), "big")


class ScopeDigest:
    """What the keys of a scope come to, in whatever order they are added."""

    __slots__ = ("_sum", "count")

    def __init__(self) -> None:
        self._sum = 0
        self.count = 0

    def add(self, one: int) -> None:
        """Take the digest of a key."""
        self._sum = (self._sum + one) % _MODULUS
        self.count += 1

    @property
    def hex(self) -> str:
        """The sum, as 64 hex digits."""
        return f"{self._sum:064x}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScopeDigest):
            return NotImplemented
        return (self.count, self._sum) == (other.count, other._sum)

    __hash__ = None  # type: ignore[assignment] # it changes

    def __repr__(self) -> str:
        return f"<ScopeDigest of {self.count} keys, {self.hex[:12]}>"
