"""What hooks had kept of earlier results: bounded, for a time, in this process."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from copy import deepcopy
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.changes import Op
from llmspell_dist.fork import child_safe_lock

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import Commit

__all__ = ["ABSENT", "CachedResult", "ResultCache"]

MAX_ENTRIES: Final = 1024
MAX_WRITTEN: Final = 10_000
logger = logging.getLogger("llmspell_dist.hooks")


class ABSENT:
    """Stands for a value that is not there: a class, for a copy of one is itself."""


class CachedResult(NamedTuple):
    """A result that was kept."""

    value: Any


class _Entry(NamedTuple):
    ends: float
    value: Any
    place: tuple[str, str] | None
    """Whose writes end it."""
    stamp: Any


class ResultCache:
    """The least recently used goes first; whoever gets a value gets a copy of his own.

    What cannot be copied is not kept. `wrote` is told of the commits of the client, before they
    leave and when they are over, so an entry that has a place is never older than those.
    """

    def __init__(
        self, max_entries: int = MAX_ENTRIES, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._max_entries = max_entries
        self._clock = clock
        self._lock = child_safe_lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._written: OrderedDict[tuple[str, str | None], int] = OrderedDict()
        self._generations = count(1)
        self._epoch = 0
        self.watching = False
        """Whether to be told of commits; on for good once a hook before reads was registered."""
        self.hits = self.misses = 0

    def get(self, key: Hashable) -> CachedResult | None:
        """Return what was kept under a key, if its time is not over."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.ends <= self._clock() or not self._holds(entry):
                self._entries.pop(key, None)
                self.misses += 1
                return None
            self._entries.move_to_end(key)
            self.hits += 1
        copied = _copied(entry.value)
        if copied is None:
            self.drop(key)
        return copied

    def _holds(self, entry: _Entry) -> bool:
        return entry.place is None or self._stamp(entry.place) == entry.stamp

    def put(
        self,
        key: Hashable,
        value: Any,
        ttl: float,
        place: tuple[str, str] | None = None,
        stamp: Any = None,
    ) -> None:
        """Keep a value for some seconds; of a place: unless it was written since the stamp."""
        copied = _copied(value)
        if copied is None:
            return
        entry = _Entry(self._clock() + ttl, copied.value, place, stamp)
        with self._lock:
            if not self._holds(entry):
                return
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def stamp(self, place: tuple[str, str]) -> Any:
        """Return what is another as soon as this client writes a place: scope and key."""
        with self._lock:
            return self._stamp(place)

    def _stamp(self, place: tuple[str, str]) -> Any:
        written = self._written.get
        return self._epoch, written(place, 0), written((place[0], None), 0)

    def wrote(self, commit: Commit) -> None:
        """Forget what a commit of this client changes."""
        with self._lock:
            for head, scope, key, _ in commit.changes:
                if head[0] == Op.COPY:
                    # A move changes the scope that it reads from too.
                    for each in commit.scopes:
                        self._forget(each.scope.text, None)
                else:
                    whole = head[0] in (Op.CLEAR, Op.RESTORED)
                    self._forget(commit.scopes[scope].scope.text, None if whole else key.decode())

    def _forget(self, scope: str, key: str | None) -> None:
        self._written[scope, key] = next(self._generations)
        self._written.move_to_end((scope, key))
        if len(self._written) > MAX_WRITTEN:
            # What was written is no longer known of all keys, so nothing kept is good any more.
            self._written.clear()
            self._epoch += 1

    def drop(self, key: Hashable) -> None:
        """Forget a key."""
        with self._lock:
            self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)


def _copied(value: Any) -> CachedResult | None:
    try:
        return CachedResult(deepcopy(value))
    except Exception as error:  # noqa: BLE001 - whatever a foreign object raises
        logger.debug("a result of %s cannot be kept: %s", type(value).__name__, type(error))
        return None
