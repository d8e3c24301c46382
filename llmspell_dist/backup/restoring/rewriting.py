"""Records as they are restored: with the revision of the restore, all else as it was.

The revision is new, so nobody's compare-and-set takes the restored record for the one that it has
read. The record says that it came by a restore, because its revision is that of no change of it.
Generations of elements get new names, each made from the old one: so a change of the log that is
repeated finds the elements that it went on with.
"""

from __future__ import annotations

import hashlib
from typing import Final

from llmspell_dist.records import CREATED, EXPIRES, FORMAT, MIN_HEADER, RESTORED

__all__ = ["COMPOSITE", "GENERATION_AT", "TTL_MODES", "Rewriting"]

TTL_MODES: Final = ("absolute", "remaining")
COMPOSITE: Final = 48
"""Kind and class of a record from here on: its elements lie in a sibling key."""
GENERATION_AT: Final = 10
"""Where in a composite's payload the generation begins, behind count and bytes."""
_STARTS: Final = (15, 21, 21, 27)
NEVER: Final = bytes(6)


class Rewriting:
    """How the records of one shard's restore are rewritten."""

    __slots__ = ("_created", "_plain", "_salt", "flag", "ms", "revision", "shift_ms")

    def __init__(
        self, revision: bytes, restore_id: str, *, shift_ms: int | None, marked: bool
    ) -> None:
        self.revision = revision
        self.ms = revision[:6]
        self.shift_ms = shift_ms
        """What is added to an expiry: the time between then and now; None: it stays."""
        self.flag = RESTORED if marked else 0
        kept = [flags & ~(CREATED | EXPIRES | RESTORED) | self.flag for flags in range(256)]
        self._created = [bytes((flags | CREATED,)) for flags in kept]
        self._plain = [bytes((flags,)) for flags in kept]
        self._salt = restore_id.encode()

    def generation(self, source: bytes, cleared: int = 0) -> bytes:
        """Return the name that the elements of a generation get in this restore.

        `cleared`: how often their scope was cleared by changes that were repeated; elements from
        before lie there still, until they are swept.
        """
        named = b"%b:%d" % (source, cleared) if cleared else source
        digest = hashlib.blake2b(named, digest_size=12, key=self._salt[:64])
        return b"r" + digest.hexdigest().encode()

    def expiry(self, expires: bytes) -> bytes:
        """Return when a key expires that expired then: six bytes, zeros for never."""
        if self.shift_ms is None or expires == NEVER:
            return expires
        shifted = int.from_bytes(expires, "big") + self.shift_ms
        return max(1, min(shifted, 2**48 - 1)).to_bytes(6, "big")

    def header(self, raw: bytes) -> tuple[bytes, bytes, int] | None:
        """Return a record's new header, its expiry (empty: never), where its payload begins.

        None if this is no record of a format that is known here.
        """
        if len(raw) < MIN_HEADER or raw[0] != FORMAT:
            return None
        flags = raw[2]
        optional = flags & (CREATED | EXPIRES)
        if not optional:
            if raw[5:11] == self.ms:
                return raw[:2] + self._plain[flags] + raw[3:5] + self.revision, b"", 15
            head = raw[:2] + self._created[flags] + raw[3:5] + self.revision + raw[5:11]
            return head, b"", 15
        start = _STARTS[optional]
        if len(raw) < start:
            return None
        created, at = (raw[15:21], 21) if optional & CREATED else (raw[5:11], 15)
        expires = self.expiry(raw[at : at + 6]) if optional & EXPIRES else b""
        if created == self.ms:
            created, new = b"", self._plain[flags][0]
        else:
            new = self._created[flags][0]
        if expires:
            new |= EXPIRES
        head = raw[:2] + bytes((new,)) + raw[3:5] + self.revision + created + expires
        return head, expires, start

    def flags(self, flags: int) -> int:
        """Return the flags of a record that a change of the log leaves, without optional fields."""
        return self._plain[flags & 255][0]
