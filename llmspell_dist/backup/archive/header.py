"""What a segment says about itself, and the writer that makes segments.

A segment is an object of kind segment whose first item is an ``N`` named ``segment``: a MessagePack
map. It stands inside the encryption; ``after`` and ``upto`` stand in the name too, so that gaps are
found by listing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgpack

from llmspell_dist.backup.archive.position import Place
from llmspell_dist.backup.errors import BackupDamagedError, BackupFormatError
from llmspell_dist.backup.items import Extra, Item, pack_extra
from llmspell_dist.backup.writing import ObjectWriter
from llmspell_dist.revision import Revision

__all__ = ["SegmentHeader", "SegmentWriter"]

FORMAT: Final = 1
_NAME: Final = b"segment"


class SegmentHeader(NamedTuple):
    """Where a segment belongs."""

    timeline: str
    shard: str
    after: Revision
    """Its entries come after this revision."""
    upto: Place
    """The last entry that it covers."""
    previous: str
    """SHA-256 of the segment before it, in hex; empty: it is the first of its timeline."""
    gap_after: Revision | None
    """What came after this revision and up to `after` was lost: the log was trimmed."""
    part: int
    """0: it has entries; else it holds more of what is attached to those of another one."""
    parts: tuple[str, ...]
    """SHA-256 of those, in hex and in order; they are stored before this one."""
    ms: int
    """When it was made, by the clock of its process."""
    entries: int

    def packed(self) -> bytes:
        """Return the item."""
        gap = None if self.gap_after is None else self.gap_after.packed
        facts = {
            "format": FORMAT,
            "timeline": self.timeline,
            "shard": self.shard,
            "after": self.after.packed,
            "upto": self.upto.revision.packed,
            "operation": self.upto.operation,
            "previous": self.previous,
            "gap_after": gap,
            "part": self.part,
            "parts": self.parts,
            "ms": self.ms,
            "entries": self.entries,
        }
        return pack_extra(_NAME, bytes(msgpack.packb(facts)))

    @classmethod
    def read(cls, item: Item | None, name: str) -> SegmentHeader:
        """Read the first item of a segment."""
        if not isinstance(item, Extra) or item.name != _NAME:
            raise BackupDamagedError(name, "it does not begin as a segment does")
        try:
            facts = msgpack.unpackb(item.data)
            if facts["format"] != FORMAT:
                raise BackupFormatError(name, facts["format"], FORMAT)
            gap = facts["gap_after"]
            return cls(
                facts["timeline"],
                facts["shard"],
                _revision(facts["after"]),
                Place(_revision(facts["upto"]), facts["operation"]),
                facts["previous"],
                None if gap is None else _revision(gap),
                facts["part"],
                tuple(facts["parts"]),
                facts["ms"],
                facts["entries"],
            )
        except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            reason = f"its first item is damaged: {type(error).__name__}"
            raise BackupDamagedError(name, reason) from None


def _revision(packed: bytes) -> Revision:
    return Revision.unpack(packed) or Revision(0, 0)


class SegmentWriter(ObjectWriter):
    """Collects the items of one segment; what is attached may be more than fits, and then parts."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    @property
    def size(self) -> int:
        """Bytes of what was not cut off yet."""
        return self._size

    def add_plain(self, item: bytes) -> None:
        """Write an entry: where a segment ends, its reader decides."""
        self._parts.append(item)
        self._size += len(item)
        self.entries += 1
