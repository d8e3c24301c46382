"""Following a scope: from messages while they come without a gap, else from the log.

What is published arrives in a bounded buffer. The log is read when that cannot be enough: at the
beginning of a watch from an earlier revision, after a lost connection, when the consumer was too
slow. `watch.Watch` is what users see of it; it decides when to read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from llmspell_dist.backoff import Backoff
from llmspell_dist.changes import Op
from llmspell_dist.errors import ClosedError, HistoryDivergedError, SpellError
from llmspell_dist.revision import BEGINNING, Revision
from llmspell_dist.state.history import NAMES
from llmspell_dist.state.model import Change
from llmspell_dist.watch.buffer import Buffer
from llmspell_dist.watch.errors import WatchTrimmedError
from llmspell_dist.watch.snapshot import Scan, Seen
from llmspell_dist.watch.tail import Known, Missing, Tail

if TYPE_CHECKING:
    from llmspell_dist.changes import LogEntry, LoggedChange
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.state.seen.changes import SeenChanges
    from llmspell_dist.watch.bell import Told
    from llmspell_dist.watch.service import Watches

__all__ = ["Follower", "OnTrimmed"]

logger = logging.getLogger("llmspell_dist.watch")

OnTrimmed = Literal["raise", "snapshot"]
_REMEMBERED: Final = 256
_FORGOTTEN_AFTER_S: Final = 23 * 3600.0
"""A scope that was empty is forgotten a day after its last change, not earlier."""


class _Frame(NamedTuple):
    """A change that is still to be decoded: each consumer gets values of its own."""

    entry: LogEntry
    logged: LoggedChange


class Follower:
    """Where a watch is, what it has heard, and how it reads on."""

    def __init__(
        self,
        watches: Watches,
        scope: ScopeKey,
        prefix: str,
        since: Revision | Change | None,
        on_trimmed: OnTrimmed,
        *,
        shown: SeenChanges,
    ) -> None:
        self._watches = watches
        self._shown = shown
        self._scope = scope
        self._prefix = prefix
        self._on_trimmed = on_trimmed
        self._since = since
        self._known = Known(None)
        self._recent: deque[tuple[Revision, str]] = deque(maxlen=_REMEMBERED)
        if isinstance(since, Change):
            self._known = Known(since.revision, since.operation)
            self._recent.append((since.revision, since.operation))
        elif since is not None:
            self._known = Known(since, exact=False)
            if since == BEGINNING:
                self._known = Known(None)
        self._place = since.revision if isinstance(since, Change) else since
        self._buffer = Buffer()
        self._ahead = bytearray()
        self._changes: deque[_Frame | Change] = deque()
        self._cut_off: Missing | None = None
        self._scan: Scan | None = None
        self._noted: Known | None = None
        self._seen = Seen()
        self._joined = False
        self._started = False
        self._unbroken = False
        """Whether everything was heard since the log was read to its end."""
        self._unbroken_at = float("-inf")
        self._gaps = 0
        self._waiter: asyncio.Future[None] | None = None
        self._busy = False
        self._end: SpellError | Literal["closed"] | None = None

    @property
    def scope(self) -> str:
        """The scope that is watched."""
        return self._scope.text.decode()

    # --- the beginning

    async def _go_to_now(self) -> None:
        gaps = self._gaps
        known = await self._watches.run(self._watches.tail.now(self._scope))
        self._arrived(known.revision, known.operation)
        self._buffer.start(known.revision)
        self._finish(gaps)

    def _hears_all(self, unbroken: bool) -> None:
        self._unbroken = unbroken
        self._unbroken_at = monotonic()

    async def _take_rest_of(self) -> None:
        """Find what follows the change that the watch begins after, in the same commit."""
        since = self._since
        assert isinstance(since, Change)  # noqa: S101 - asked before
        entry = await self._watches.run(self._watches.tail.entry(self._scope, since.revision))
        if isinstance(entry, Missing):
            self._cut_off = entry  # what followed in that commit, nobody knows
            return
        if entry.operation != since.operation:
            return  # the log is looked at more closely in a moment
        frames = self._wanted(entry)
        for place, frame in enumerate(frames):
            if frame.logged.key == since.key and NAMES[Op(frame.logged.op)] == since.op:
                self._changes.extend(frames[place + 1 :])
                if self._changes:
                    self._place = entry.changes[0].previous_in_scope or BEGINNING
                break

    # --- handing out

    def _open_entry(self, entry: LogEntry) -> None:
        if any(logged.op == Op.RESTORED for logged in entry.changes):
            self._begin_anew(entry)
            return
        frames = self._wanted(entry)
        if frames:
            self._changes.extend(frames)
        else:
            self._arrived(entry.revision, entry.operation)

    def _wanted(self, entry: LogEntry) -> list[_Frame]:
        """Return the changes of an entry that this watch hands out."""
        prefix, seen = self._prefix, self._seen
        return [
            _Frame(entry, logged)
            for logged in entry.changes
            if logged.op in NAMES
            and logged.op != Op.RESTORED
            and (logged.key.startswith(prefix) or logged.op == Op.CLEAR)
            and not (seen and seen.covers(entry, logged))
        ]

    def _hand_out(self) -> Change:
        frame = self._changes[0]
        self._pass_on()
        return self._decoded(frame)

    def _pass_on(self) -> None:
        """Take note that the next change is the consumer's now."""
        frame = self._changes.popleft()
        if self._changes:
            return
        if isinstance(frame, _Frame):
            self._arrived(frame.entry.revision, frame.entry.operation)
        elif self._noted is not None:
            self._arrive_after(self._noted)

    def _decoded(self, frame: _Frame | Change) -> Change:
        if isinstance(frame, Change):
            return frame
        return self._watches.history.change(frame.entry, frame.logged, frame.logged.key)

    async def _hand_out_seen(self) -> Change:
        """Hand the next change out as its reader may see it.

        It stays the next one if the reader is cancelled meanwhile; a refusal is handed out in its
        place.
        """
        if not self._shown.wanted:
            return self._hand_out()
        try:
            shown = self._shown.change(self._decoded(self._changes[0]))
            change = await self._watches.run(shown)
        except Exception:
            self._pass_on()
            raise
        self._pass_on()
        return change

    def _arrived(self, revision: Revision | None, operation: str) -> None:
        self._known = Known(revision, operation)
        self._place = revision or BEGINNING
        if revision is not None:
            self._recent.append((revision, operation))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- reading the log

    async def _read(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do one step of reading, for as long as the server cannot be reached."""
        backoff = Backoff(first_s=0.05, max_s=1.0)
        while self._end is None:
            try:
                await step()
            except SpellError as error:
                if not error.retryable:
                    raise
                logger.info("watch of %s: %s", self.scope, error)
            else:
                return
            await asyncio.sleep(backoff.next_s())

    async def _catch_up(self) -> None:
        gaps = self._gaps
        known = self._known
        tail = await self._watches.run(self._watches.tail.after(self._scope, known))
        cut_off, self._cut_off = self._cut_off, None
        if tail.ended == "forgotten" and not self._was_there():
            tail = tail._replace(ended="trimmed")
        elif tail.ended == "ok" and cut_off is not None:
            tail = tail._replace(ended="trimmed", floor=cut_off.floor)
        if tail.ended == "trimmed":
            self._trimmed(tail.floor)
        elif tail.ended == "diverged":
            await self._diverged()
        else:
            self._take(tail, gaps)

    def _was_there(self) -> bool:
        """Whether nothing happened before the scope was forgotten that was not heard."""
        return self._unbroken or monotonic() - self._unbroken_at < _FORGOTTEN_AFTER_S

    def _take(self, tail: Tail, gaps: int) -> None:
        if tail.landed != self._known.revision or not self._known.exact:
            self._known = Known(tail.landed)
            self._place = tail.landed if tail.landed is not None else self._place
        self._buffer.start(tail.landed)
        self._ahead = tail.ahead
        if not self._ahead:
            self._buffer.put(tail.entries)
            self._finish(gaps)

    async def _read_page(self) -> None:
        gaps = self._gaps
        page = await self._watches.run(self._watches.tail.page(self._scope, self._ahead))
        if isinstance(page, Missing):
            self._ahead.clear()  # the next look at the log says what happened
            return
        self._buffer.put(page)
        if not self._ahead:
            self._finish(gaps)

    def _finish(self, gaps: int) -> None:
        """Take note that the log was read to its end, but for what was missed meanwhile."""
        self._buffer.caught_up()
        if gaps != self._gaps:
            self._buffer.behind = True
        elif not self._buffer.behind:
            self._hears_all(self._watches.feeds.hears(self._scope))

    def _trimmed(self, floor: Revision | None) -> None:
        if self._on_trimmed == "raise":
            self._fail(WatchTrimmedError(self.scope, self._known.revision, floor))
        self._scan_all()

    def _scan_all(self) -> None:
        watches = self._watches
        self._scan = Scan(self._scope, self._prefix, watches.reads, watches.scopes)

    def _begin_anew(self, entry: LogEntry) -> None:
        """Read what the scope holds: it was put back as it once was, as a whole."""
        self._ahead.clear()
        self._buffer.start(entry.revision)
        self._buffer.behind = True
        self._scan_all()

    async def _diverged(self) -> None:
        recent = list(reversed(self._recent))
        common = await self._watches.run(self._watches.tail.last_common(self._scope, recent))
        self._fail(HistoryDivergedError(common, self._known.revision))

    def _fail(self, error: SpellError) -> None:
        self._end = error
        raise error

    async def _scan_on(self) -> None:
        scan = self._scan
        assert scan is not None  # noqa: S101 - asked before
        page = await self._watches.run(scan.page(self._watches.tail))
        self._changes.extend(page)
        if scan.done:
            self._scan, self._noted = None, scan.noted
            self._seen = scan.seen
            self._recent.clear()
            if not page:
                self._arrive_after(scan.noted)

    def _arrive_after(self, noted: Known) -> None:
        """Go on from where a snapshot was taken, once all of it was handed out."""
        self._noted = None
        self._buffer.start(noted.revision)
        self._buffer.behind = True
        self._known = noted
        self._place = noted.revision or BEGINNING

    # --- what the feed tells

    def rang(self, revision: Revision) -> None:
        """Wait for what follows."""

    def told(self, told: Told) -> None:
        """Take what was published."""
        if not self._started:
            self._buffer.note(told.revision)
            return
        if not self._buffer.hear(told) and not self._is_late(told):
            # A history that began anew, at revisions that were there before: the log says so.
            self._buffer.behind = True
        if self._buffer.full:
            self._unbroken, self._unbroken_at = False, float("-inf")
            self._buffer.overflow(self._after_changes())
        self._wake()

    def _is_late(self, told: Told) -> bool:
        """Whether the log told all of a message before the message came."""
        return bool(told.entries) and all(map(self._was_read, told.entries))

    def _was_read(self, entry: LogEntry) -> bool:
        last = self._changes[-1] if self._changes else None
        return (
            self._buffer.has(entry)
            or (entry.revision, entry.operation) in self._recent
            or (isinstance(last, _Frame) and last.entry.operation == entry.operation)
        )

    def _after_changes(self) -> Revision | None:
        """Return the revision up to which the consumer has everything, or is about to."""
        last = self._changes[-1] if self._changes else None
        return last.entry.revision if isinstance(last, _Frame) else self._known.revision

    def missed(self, revision: Revision) -> None:
        """Look at the log: something happened."""
        self._buffer.note(revision)
        self._wake()

    def lost(self) -> None:
        """Take note that messages are missed from now on."""
        if self._unbroken:
            self._hears_all(False)
        self._wake()  # to wait as one does who hears nothing

    def resumed(self) -> None:
        """Look at the log, and whether it is the one that was read before."""
        self._gaps += 1
        self._buffer.behind = True
        self._wake()

    def ended(self, *, forked: bool) -> None:
        """End: the client was closed, or this is a forked child."""
        self._joined = False
        if self._end is None:
            said = "the watch belongs to the parent process" if forked else "the client is closed"
            self._end = ClosedError(said)
        if not forked:
            self._wake()
