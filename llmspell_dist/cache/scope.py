"""One scope in the near cache: the values that are kept, the reads on their way, what is heard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmspell_dist.changes import Op
from llmspell_dist.revision import BEGINNING

if TYPE_CHECKING:
    from llmspell_dist.cache.near import Near
    from llmspell_dist.cache.store import Entry
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.revision import Revision
    from llmspell_dist.watch.bell import Told

__all__ = ["CachedScope", "OnTheWay"]


class OnTheWay:
    """The reads of one key that wait for their replies."""

    __slots__ = ("count", "least")

    def __init__(self) -> None:
        self.count = 0
        self.least = BEGINNING
        """What is known of the key is as new as this: a reply that is older is not kept."""


class CachedScope:
    """One scope: the values that are kept, the reads on their way, and what is heard about it."""

    __slots__ = (
        *("__weakref__", "asked_at", "at", "entries", "hearing", "joining", "key", "near"),
        *("reads", "rung", "suspect", "used_at"),
    )

    def __init__(self, near: Near, key: ScopeKey) -> None:
        self.near = near
        self.key = key
        self.entries: dict[str, Entry] = {}
        self.reads: dict[str, OnTheWay] = {}
        self.hearing = False
        self.joining = False
        self.asked_at = float("-inf")
        self.suspect = False
        """A commit was announced, and what it did is not known yet: nothing is served."""
        self.rung: Revision | None = None
        self.at: Revision | None = None
        """The scope's revision, as far as was heard."""
        self.used_at = 0.0

    # --- reads on their way

    def begin(self, keys: Iterable[str]) -> dict[str, OnTheWay]:
        """Note that keys are being read; nothing if what is read cannot be kept."""
        begun: dict[str, OnTheWay] = {}
        if self.hearing:
            for key in dict.fromkeys(keys):
                reads = begun[key] = self.reads.setdefault(key, OnTheWay())
                reads.count += 1
        return begun

    def end(self, begun: dict[str, OnTheWay]) -> None:
        """Note that reads are over."""
        for key, reads in begun.items():
            reads.count -= 1
            if not reads.count and self.reads.get(key) is reads:
                del self.reads[key]

    def admits(self, key: str, reads: OnTheWay | None, as_of: Revision) -> bool:
        """Whether the reply to one of these reads may be kept: nothing newer is known."""
        return reads is not None and self.reads.get(key) is reads and as_of >= reads.least

    # --- changes

    def known(self, key: str, revision: Revision) -> None:
        """Let no reply be kept that is older than a revision of the key that was seen."""
        reads = self.reads.get(key)
        if reads is not None and reads.least < revision:
            reads.least = revision

    def change(self, key: str, revision: Revision | None = None) -> None:
        """Drop a key, unless what is held of it is as new as the change."""
        if revision is None:
            self.reads.pop(key, None)
        else:
            self.known(key, revision)
        entry = self.entries.get(key)
        if entry is not None and (revision is None or entry.as_of < revision):
            self.near.invalidate(entry)

    def change_all(self) -> None:
        """Drop everything."""
        self.reads.clear()
        for entry in list(self.entries.values()):
            self.near.invalidate(entry)

    # --- what the feed tells

    def rang(self, revision: Revision) -> None:
        """Serve nothing until it is known what was changed."""
        self.suspect, self.rung = True, revision

    def told(self, told: Told) -> None:
        """Drop what was changed."""
        with self.near.lock:
            gap = self.at is not None and told.previous != self.at
            self.at = told.revision
            if gap or not told.entries:
                self.change_all()
            for entry in told.entries:
                for logged in entry.changes:
                    if logged.op in (Op.CLEAR, Op.RESTORED):
                        self.change_all()
                    else:
                        self.change(logged.key, entry.revision)
            if self.rung is None or told.revision >= self.rung:
                self.suspect = False

    def missed(self, revision: Revision) -> None:
        """Drop everything: something was changed."""
        with self.near.lock:
            self.at = revision
            self.change_all()
            self.suspect = False

    def lost(self) -> None:
        """Serve nothing from now on."""
        with self.near.lock:
            self.hearing = False
            self.change_all()

    def resumed(self) -> None:
        """Keep what is read from now on."""
        with self.near.lock:
            self.change_all()
            self.at = self.rung = None
            self.suspect, self.hearing = False, True

    def ended(self, *, forked: bool) -> None:
        """Forget everything."""
        self.hearing = False
        if not forked:  # the child's cache begins anew as a whole
            with self.near.lock:
                self.change_all()
                self.near.dismiss(self)
