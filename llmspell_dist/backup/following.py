"""What is repeated of several stretches of the log: each entry once, and which keys stay open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from llmspell_dist.backup.archive.reader import Kept
from llmspell_dist.backup.frames import OpenKeys, frames_in
from llmspell_dist.backup.items import (
    Elements,
    Item,
    Logged,
    Missing,
    Record,
    ScopeRecord,
    ScopeStart,
    Unresolved,
)
from llmspell_dist.revision import Revision

__all__ = ["Follower"]

_BEGINNING: Final = Revision(0, 0)


class Follower:
    """Passes on what stands in segments, each entry once, and knows which keys stay open.

    An entry that an earlier stretch had is left out: repeating it would undo the values that were
    read behind it.
    """

    def __init__(self, upto: Revision) -> None:
        self.open = OpenKeys(archiving=True)
        self._upto = upto
        self._applied = _BEGINNING
        self._kept = Kept(_BEGINNING, upto)
        self._scope = b""
        self._key: bytes | None = None

    def begin(self) -> None:
        """Go on with another stretch."""
        self._kept = Kept(self._applied, self._upto)

    def follow(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of one object."""
        for item in self._kept.of(iter(items)):
            kind = type(item)
            if kind is Missing:
                self._key = None
            elif kind is not Elements:
                self._settle()
            if isinstance(item, Logged):
                self._applied = Revision.unpack(item.revision) or _BEGINNING
                for frame in frames_in(item.changes, str(self._applied)):
                    self.open.look(frame, self._applied)
            elif isinstance(item, ScopeStart):
                self._scope = item.text
            elif isinstance(item, Record):
                self._key = item.key
            elif isinstance(item, ScopeRecord):
                self.open.scopes.pop(self._scope, None)  # all of the scope follows
            elif isinstance(item, Unresolved):
                if not item.key:
                    revision = Revision.unpack(item.revision) or _BEGINNING
                    self.open.scopes[self._scope] = revision
                continue  # a key is open anyway, until a later entry brings its value
            yield item
        self._settle()

    def _settle(self) -> None:
        """Note that a record is whole: something else follows its elements."""
        key, self._key = self._key, None
        if key is not None:
            self.open.close(self._scope, key)
