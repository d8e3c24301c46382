"""What a scope holds now, for a watch that cannot go on where it was: a snapshot, then the tail.

A scope of at most 1,000 keys and 1 MiB is read as of one moment. A larger one is scanned after its
revision was noted; the tail from that revision on then leaves out what the scan had seen already.
If another server process answers in the middle of it (a restart, a failover), it begins again with
another ``reset``: the new one may have lost what the first one had shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmspell_dist.changes import LogEntry, LoggedChange, Op
from llmspell_dist.classes import StateClass
from llmspell_dist.errors import LimitError
from llmspell_dist.revision import Revision, from_ms
from llmspell_dist.state.model import Change
from llmspell_dist.watch.tail import Known

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.state.reads import Found, Reads
    from llmspell_dist.state.scopes import Scopes
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.watch.tail import TailReader

__all__ = ["Scan", "Seen"]

_PAGE_KEYS: Final = 500


class Seen:
    """What a scan saw that is newer than the revision from which the tail begins."""

    def __init__(self) -> None:
        self._newer: dict[str, Revision] = {}

    def note(self, key: str, revision: Revision) -> None:
        """Remember at which revision a key was seen."""
        self._newer[key] = revision

    def covers(self, entry: LogEntry, logged: LoggedChange) -> bool:
        """Whether the scan had seen this change already."""
        if logged.op == Op.CLEAR:
            # The reader is told to forget what it saw: from here on it needs every change.
            self._newer.clear()
            return False
        seen = self._newer.get(logged.key)
        return seen is not None and entry.revision <= seen

    def __bool__(self) -> bool:
        return bool(self._newer)


class Scan:
    """One reading of a whole scope, page by page."""

    def __init__(self, scope: ScopeKey, prefix: str, reads: Reads, scopes: Scopes) -> None:
        self.scope = scope
        self.noted = Known(None)
        """Where the tail begins."""
        self.seen = Seen()
        self.done = False
        self._prefix = prefix
        self._reads = reads
        self._scopes = scopes
        self._cursor: str | None = None
        self._begun = False

    def page(self, tail: TailReader) -> Steps[list[Change]]:
        """Return some of what is there, after a change ``reset`` at the very beginning."""
        if self._begun:
            return (yield from self._scan(tail))
        # Whoever is cancelled, or loses the connection, before all is there begins again.
        noted = yield from tail.now(self.scope)
        try:
            meta, found = yield from self._reads.everything(self.scope.scope, "a snapshot")
        except LimitError:
            self.noted, self._begun = noted, True
            return [self._reset(noted.revision)]
        self.noted = noted if meta.revision == noted.revision else Known(meta.revision)
        self._begun = True
        self.done = True
        every = [(key, one) for key, one in found.items() if key.startswith(self._prefix)]
        return [self._reset(meta.revision), *self._changes(every)]

    def _scan(self, tail: TailReader) -> Steps[list[Change]]:
        page = yield from self._scopes.found_page(
            self.scope.scope, self._cursor, _PAGE_KEYS, self._prefix or None
        )
        if page.again:
            self._begun, self._cursor, self.seen = False, None, Seen()
            return (yield from self.page(tail))
        self._cursor, self.done = page.cursor, page.cursor is None
        return self._changes(page.found)

    def _changes(self, found: list[tuple[str, Found]]) -> list[Change]:
        for key, one in found:
            if self.noted.revision is None or one.stored.revision > self.noted.revision:
                self.seen.note(key, one.stored.revision)
        return [self._change(key, one) for key, one in found]

    def _reset(self, revision: Revision | None) -> Change:
        at = revision or Revision(0, 0)
        return Change(self.scope.scope.text, "", "reset", at, at.time, has_value=False)

    def _change(self, key: str, found: Found) -> Change:
        stored = found.stored
        return Change(
            self.scope.scope.text,
            key,
            "snapshot",
            stored.revision,
            stored.revision.time,
            has_value=True,
            value=found.value,
            expires=from_ms(stored.expires_ms) if stored.expires_ms else None,
            state_class=StateClass(stored.state_class),
        )
