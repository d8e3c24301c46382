"""Whether the contents of objects are what a manifest promises: decoded, counted, followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llmspell_dist.backup.errors import BackupDamagedError
from llmspell_dist.backup.frames import frames_in
from llmspell_dist.backup.items import Logged, Record, ScopeRecord, ScopeStart, unpack_items
from llmspell_dist.errors import CorruptRecordError
from llmspell_dist.records import unpack_record
from llmspell_dist.revision import NO_REVISION, Revision

__all__ = ["LogCheck", "count_records"]

_PREVIOUS: Final = slice(23, 33)
"""Where a frame has the revision of its scope before it."""


def count_records(raw: bytes, name: str) -> int:
    """Return how many records an object holds; one that cannot be read is an error."""
    count, scope = 0, ""
    for item in unpack_items(raw, name):
        if isinstance(item, ScopeStart):
            scope = item.text.decode()
        elif isinstance(item, Record):
            if not scope:
                raise BackupDamagedError(name, "a record stands before any scope")
            unpack_record(item.raw, scope, item.key.decode())
            count += 1
        elif isinstance(item, ScopeRecord) and not scope:
            raise BackupDamagedError(name, "a scope's record stands before any scope")
    return count


class LogCheck:
    """Follows a stretch of a shard's log through the objects that hold it, in order.

    Each change says which revision its scope had before. So an entry that is missing is noticed
    when its scope is changed again.
    """

    def __init__(
        self, after: Revision | None, upto: Revision | None, *, overlapping: bool = False
    ) -> None:
        self._after = None if after is None else after.packed
        self._upto = None if upto is None else upto.packed
        self._last = self._after or NO_REVISION
        self._overlapping = overlapping
        """Whether an object may begin with entries that another one ended with."""
        self._scopes: dict[bytes, bytes] = {}
        self.whole = True
        """Whether nothing is left out, by a filter or because an object was not read."""
        self.entries = 0

    def look(self, raw: bytes, name: str) -> Iterator[str]:
        """Yield what is wrong with the next object."""
        last = NO_REVISION if self._overlapping else self._last
        for item in unpack_items(raw, name):
            if not isinstance(item, Logged):
                continue
            self.entries += 1
            if item.revision <= last:
                yield f"entry {_printed(item.revision)} stands behind {_printed(last)}"
            if self._upto is not None and item.revision > self._upto:
                yield f"entry {_printed(item.revision)} is later than its end"
            last = item.revision
            if item.revision > self._last:
                self._last = item.revision
                yield from self._follow(item)

    def _follow(self, item: Logged) -> Iterator[str]:
        revision, changes = item.revision, item.changes
        try:
            frames = list(frames_in(changes, _printed(revision)))
        except CorruptRecordError as error:
            yield str(error)
            return
        for frame in frames:
            before = changes[frame.start : frame.end][_PREVIOUS]
            known = self._scopes.get(frame.scope)
            if self.whole and self._missing(before, known, revision):
                scope = frame.scope.decode(errors="replace")
                yield f"entry {_printed(before)} of the log is missing ({scope} had it)"
            if frame.scope:
                self._scopes[frame.scope] = revision

    def _missing(self, before: bytes, known: bytes | None, revision: bytes) -> bool:
        """Whether an entry that should be in this stretch is not."""
        if before in {NO_REVISION, revision, known}:
            return False
        if known is not None:
            return before > known
        # The scope's first change here: what was before it may lie before the stretch.
        return self._after is not None and before > self._after


def _printed(packed: bytes) -> str:
    return str(Revision.unpack(packed) or "0-0")
