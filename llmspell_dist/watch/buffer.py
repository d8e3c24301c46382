"""What a watch has heard and its consumer has not taken yet, in order and bounded."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmspell_dist.changes import LogEntry
    from llmspell_dist.revision import Revision
    from llmspell_dist.watch.bell import Told

__all__ = ["Buffer"]

MAX_ENTRIES: Final = 1000
MAX_BYTES: Final = 1024 * 1024


class Buffer:
    """Entries of one scope that follow one another without a gap.

    `behind` says that there are entries after them which only the log has: the scope went on while
    nobody listened, a message left them out, or the consumer was too slow and the buffer full.
    """

    __slots__ = ("_entries", "_heard", "_size", "_sizes", "behind", "overflows", "tail")

    def __init__(self) -> None:
        self._entries: deque[LogEntry] = deque()
        self._sizes: deque[int] = deque()
        self._size = 0
        self._heard: Revision | None = None
        self.behind = False
        self.overflows = 0
        self.tail: Revision | None = None
        """The revision up to which there is no gap; None: the scope's beginning."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def start(self, tail: Revision | None) -> None:
        """Hold nothing, and expect what follows a revision."""
        self._entries.clear()
        self._sizes.clear()
        self._size = 0
        self.tail = tail

    def take(self) -> LogEntry:
        """Return the oldest entry."""
        self._size -= self._sizes.popleft()
        return self._entries.popleft()

    def put(self, entries: list[LogEntry]) -> None:
        """Add entries that were read from the log."""
        for entry in entries:
            self._add(entry, 0)  # a page has a limit of its own

    def _add(self, entry: LogEntry, size: int) -> None:
        self._entries.append(entry)
        self._sizes.append(size)
        self._size += size
        self.tail = entry.revision

    def hear(self, told: Told) -> bool:
        """Add what was just published, if it follows what is here; else note that it is missing.

        Returns whether it goes on from here: False if the scope was as far, or further, already.
        """
        tail = self.tail
        if not self.behind:
            share = told.size // len(told.entries) if told.entries else 0
            for entry in told.entries:
                if self.tail is not None and entry.revision <= self.tail:
                    continue
                if not entry.changes or entry.changes[0].previous_in_scope != self.tail:
                    self.behind = True
                    break
                self._add(entry, share)
        self.note(told.revision)
        return tail is None or told.revision > tail

    def note(self, revision: Revision) -> None:
        """Take note that the scope is at a revision."""
        if self._heard is None or revision > self._heard:
            self._heard = revision
        if self.tail is None or revision > self.tail:
            self.behind = True

    def has(self, entry: LogEntry) -> bool:
        """Whether that very commit is here, and not taken yet."""
        return any(
            one.revision == entry.revision and one.operation == entry.operation
            for one in reversed(self._entries)
        )

    @property
    def full(self) -> bool:
        """Whether a slow consumer has to read on from the log."""
        return len(self._entries) > MAX_ENTRIES or self._size > MAX_BYTES

    def overflow(self, tail: Revision | None) -> None:
        """Drop everything after what the consumer has: the log has it too."""
        self.overflows += 1
        self.start(tail)
        self.behind = True

    def caught_up(self) -> None:
        """Take note that the log was read to its end, unless more was heard of since."""
        heard = self._heard
        self.behind = heard is not None and (self.tail is None or heard > self.tail)
