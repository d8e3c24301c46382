"""Shipping the change log: every few seconds what is new, as sealed segments.

The position moves only when a segment is stored. So whoever is killed in between ships the same
entries again, and nothing is ever missing; readers drop what comes twice. While the target cannot
be reached the hold keeps the log, up to its cap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.backoff import Backoff
from llmspell_dist.backup.archive.header import SegmentHeader, SegmentWriter
from llmspell_dist.backup.archive.position import HOLD, Place, Position, PositionSteps
from llmspell_dist.backup.archive.reader import SegmentReader
from llmspell_dist.backup.archive.whereabouts import Gap, Start, Whereabouts
from llmspell_dist.backup.container import ObjectKind, seal
from llmspell_dist.backup.errors import BackupDivergedError, TargetError
from llmspell_dist.backup.items import pack_entry
from llmspell_dist.backup.names import SegmentName
from llmspell_dist.backup.segments import LogReader, SegmentBuilder
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.waiting import until_set
from llmspell_dist.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    LeaseLostError,
    SpellError,
    StoreUnavailableError,
)
from llmspell_dist.log import LogSteps
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.encryption import DataKey
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Gap", "Shipper", "ShipperStats"]

logger = logging.getLogger("llmspell_dist.backup")

INTERVAL_S: Final = 2.0
SEGMENT_BYTES: Final = 4 * 1024 * 1024
MOST_OPEN: Final = 10_000
MOST_OPEN_BYTES: Final = 16 * 1024 * 1024
"""Of values that are to be read and attached to one segment, about."""
_TRIES: Final = 8
_LAST_WAIT_S: Final = 1.0
"""So long who is told to end waits for a turn, if nobody else has it, to ship what is left."""
_Page = list[tuple[Revision, bytes, bytes, bytes]]


@dataclass(slots=True)
class ShipperStats:
    """What a shipper did since it was made, and how far behind it is."""

    segments: int = 0
    entries: int = 0
    plain_bytes: int = 0
    stored_bytes: int = 0
    errors: int = 0
    """Failures, of the server or of the target; each was tried again."""
    last_error: str = ""
    gaps: int = 0
    timelines: int = 0
    """How many were opened because another one ended: the server had lost writes."""
    inexact: int = 0
    """Values that were gone when they were to be attached."""
    pending: int = 0
    """Entries that were read and are not stored yet."""
    segment_lag_s: float = 0.0
    """How old the oldest entry of the last segment was when it was stored; the server's clock."""
    max_segment_lag_s: float = 0.0
    base_needed: bool = False
    """Whether a new full backup is needed, because entries are in no archive."""
    shipping: bool = False
    """Whether it is its turn: of several that `run`, one ships and the others wait."""
    timeline: str = ""
    positions: dict[str, Revision] = field(default_factory=dict)
    """By shard: up to where everything is stored."""


class _Draft(NamedTuple):
    """A segment that is being made."""

    shard: str
    start: Start
    upto: Place
    key: DataKey | None
    parts: list[str]
    """The hashes of what is stored for it already."""


class Shipper:
    """Ships the log of a namespace to its archive; one at a time.

    `guard`: what is entered while it ships, so that no other process does (a lease); without one,
    two who ship hinder each other, but do no harm. `on_gap` is told of entries that no archive has.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        repository: Repository,
        *,
        interval_s: float = INTERVAL_S,
        segment_bytes: int = SEGMENT_BYTES,
        guard: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> None:
        if not 0 < interval_s <= 3600:
            raise InvalidArgumentError("interval_s", interval_s, "must be over 0 and up to 3,600")
        if not 1024 <= segment_bytes <= 32 * 1024 * 1024:
            raise InvalidArgumentError("segment_bytes", segment_bytes, "must be 1 KiB to 32 MiB")
        self._driver = driver
        self._repository = repository
        self._interval_s = interval_s
        self._segment_bytes = segment_bytes
        self._guard = guard
        self._on_gap = on_gap
        self._where = Whereabouts(driver, repository, SegmentReader(repository))
        self._keys: dict[str, DataKey | None] = {}
        self._gaps: dict[str, Revision] = {}
        """By shard: behind which revision entries are gone; the next segment says so."""
        self._caught_up_at = monotonic()
        self._checked = False
        self.stats = ShipperStats()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._repository!r}>"

    @property
    def lag_s(self) -> float:
        """At most so old is the oldest entry that is not stored; 0 just after all was."""
        return monotonic() - self._caught_up_at

    # --- runs

    async def once(self) -> ShipperStats:
        """Ship what the log has now, and return; whatever fails is raised."""
        async with self._guarded():
            await self._flush()
        return self.stats

    async def run(self, stop: asyncio.Event) -> None:
        """Ship until `stop` is set, then what is left; what fails is tried again.

        If the server is away while it waits for its turn, or its turn is taken away, because the
        server lost its data for example, it waits again. Only errors that no waiting heals are
        raised, such as that of credentials which never were right, or `BackupKeyError` if it would
        ship without encryption to where backups are encrypted.
        """
        with suppress(TargetError):  # it is looked at again before anything is shipped
            await asyncio.to_thread(self._repository.check_plaintext)
        backoff, had_turn = Backoff(first_s=0.2, max_s=30.0), False
        while True:
            try:
                async with AsyncExitStack() as stack:
                    if not await self._has_turn(stack, stop):
                        return
                    backoff.reset()
                    self.stats.shipping = had_turn = True
                    with suppress(TargetError):
                        await self._check_plaintext()
                    await self._follow(stop)
            except (LeaseLostError, StoreUnavailableError) as error:
                if not (had_turn or _passes(error)):
                    raise
                self._failed(error)
                if stop.is_set():
                    return  # the log keeps it for whoever ships next
            else:
                return
            finally:
                self.stats.shipping = False
            await until_set(stop, backoff.next_s())

    async def _has_turn(self, stack: AsyncExitStack, stop: asyncio.Event) -> bool:
        """Wait for its turn, which lasts as long as `stack`; False if it is to end before."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:

                async def give_up() -> None:
                    await stop.wait()
                    limit.reschedule(loop.time() + _LAST_WAIT_S)

                waiting = asyncio.create_task(give_up())
                try:
                    await stack.enter_async_context(self._guarded())
                finally:
                    waiting.cancel()
                    await asyncio.wait([waiting])
        except TimeoutError:
            return False
        return True

    async def _follow(self, stop: asyncio.Event) -> None:
        """Ship until `stop` is set, then what is left, while it is this one's turn."""
        backoff = Backoff(first_s=0.2, max_s=30.0)
        while not stop.is_set():
            began = monotonic()
            try:
                await self._flush(stop)
            except InvalidArgumentError:
                raise
            except SpellError as error:
                self._failed(error)
                await until_set(stop, backoff.next_s())
                continue
            backoff.reset()
            await until_set(stop, began + self._interval_s - monotonic())
        try:
            await self._flush()
        except SpellError as error:
            self._failed(error)  # the log keeps it for whoever ships next

    async def held(self) -> dict[str, Revision]:
        """Return from where on the log is kept for the archive, by shard; empty: it is not."""
        steps, found = LogSteps(self._driver.core), {}
        for shard in self._driver.core.shards():
            stat = await self._driver.run(steps.stat(shard))
            if HOLD in stat.holds:
                found[shard] = stat.holds[HOLD]
        return found

    async def forget(self) -> None:
        """End the archive: the log is no longer kept for it. What is stored stays."""
        steps = PositionSteps(self._driver.core)
        for shard in self._driver.core.shards():
            await self._driver.run(steps.forget(shard))
        self._where.forget()

    def _guarded(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext() if self._guard is None else self._guard()

    def _failed(self, error: SpellError) -> None:
        said = f"{type(error).__name__}: {error}"
        self.stats.errors += 1
        level = logging.DEBUG if said == self.stats.last_error else logging.WARNING
        logger.log(level, "archive: %s; it is tried again", said)
        self.stats.last_error = said

    async def _flush(self, stop: asyncio.Event | None = None) -> None:
        """Ship every shard up to where its log ends."""
        began = monotonic()
        await self._check_plaintext()
        for shard in self._driver.core.shards():
            idle = 0
            while (shipped := await self._ship(shard)) is not False:
                idle = 0 if shipped else idle + 1
                if idle > _TRIES:
                    raise BackupDivergedError(shard, None, "it changes while it is read")
                if stop is not None and stop.is_set():
                    return  # the last flush goes on
        self._caught_up_at = began

    async def _check_plaintext(self) -> None:
        """Refuse to ship without encryption to where backups or the archive are encrypted."""
        if self._checked:
            return
        steps = PositionSteps(self._driver.core)
        for shard in self._driver.core.shards():
            position = (await self._driver.run(steps.look(shard))).position
            if position is not None and position.key:
                self._repository.refuse_plaintext("the archive up to here")
        await asyncio.to_thread(self._repository.check_plaintext)
        self._checked = True

    # --- one segment

    async def _ship(self, shard: str) -> bool | None:
        """Ship the next segment of a shard; False if nothing is left, None if it was in vain."""
        start = await self._where.find(shard)
        start = await self._settle(shard, start)
        position, last = start.position, start.look.last
        if last is None or last.revision <= position.place.revision:
            return False
        writer = SegmentWriter()
        builder = SegmentBuilder(self._driver, shard, writer, Selection(), archiving=True)
        marks: list[Place] = []
        first_ms = 0
        reader = LogReader(self._driver, shard)
        async for page in reader.pages(position.place.revision, last.revision):
            first_ms = first_ms or page[0][0].ms
            for number, entry in enumerate(page):
                self._add(builder, writer, [entry])
                if self._is_full(builder, writer):
                    page = page[: number + 1]  # noqa: PLW2901 - the others are the next segment's
                    break
            marks.append(Place(page[-1][0], page[-1][3]))
            self.stats.pending = writer.entries
            if self._is_full(builder, writer):
                break
        if not marks:
            return None  # it was there a moment ago
        upto = marks[-1]
        draft = _Draft(shard, start, upto, await self._key(position), [])
        async for _ in builder.attach(upto.revision):
            await self._store_parts(draft, writer)
        builder.give_up()
        writer.cut()
        await self._store_parts(draft, writer)
        if not await self._where.unchanged(shard, (position.place, *marks)):
            return None  # read from two histories, or past what was trimmed: not used
        await self._store(draft, writer, first_ms)
        self.stats.inexact += len(builder.inexact)
        return upto.revision < last.revision

    async def _settle(self, shard: str, start: Start) -> Start:
        """Put the position where shipping goes on, if it does not stand there."""
        look = start.look
        if start.gap is not None:
            self._tell(start.gap)
            self._gaps[shard] = start.gap.after or Revision(0, 0)
        if start.seen != start.position or look.broken or not look.held:
            await self._where.moved(shard, start, start.position, heals=look.broken)
            start = start._replace(seen=start.position)
        else:
            self._where.arrived(shard, start.position)
        self.stats.timeline = self._where.timeline
        self.stats.timelines = self._where.branches
        self.stats.positions[shard] = start.position.place.revision
        return start

    def _tell(self, gap: Gap) -> None:
        self.stats.gaps += 1
        self.stats.base_needed = True
        logger.warning(
            "archive: entries of shard %s after %s and up to %s are in no archive (%s): "
            "a new full backup is needed",
            gap.shard,
            gap.after,
            gap.upto,
            gap.reason,
        )
        if self._on_gap is not None:
            self._on_gap(gap)

    def _add(self, builder: SegmentBuilder, writer: SegmentWriter, page: _Page) -> None:
        """Write entries; one that cannot be read is kept as it is."""
        while page:
            before = builder.entries
            try:
                builder.add(page)
            except CorruptRecordError as error:
                place = builder.entries - before
                logger.warning("archive: %s; it is stored as it is", error)
                revision, *parts = page[place]
                writer.add_plain(pack_entry(revision.packed, *parts))
                page = page[place + 1 :]
            else:
                return

    def _is_full(self, builder: SegmentBuilder, writer: SegmentWriter) -> bool:
        """Whether the segment ends here: what it has, or what is to be attached, is enough."""
        return (
            writer.size >= self._segment_bytes
            or builder.open > MOST_OPEN
            or builder.open_bytes >= MOST_OPEN_BYTES
        )

    def _header(self, draft: _Draft) -> SegmentHeader:
        position, after = draft.start.position, draft.start.position.place.revision
        gap, now_ms = self._gaps.get(draft.shard), int(time() * 1000)
        return SegmentHeader(
            *(position.timeline, draft.shard, after, draft.upto, position.digest, gap),
            *(0, (), now_ms, 0),
        )

    async def _store_parts(self, draft: _Draft, writer: SegmentWriter) -> None:
        """Store what is too much for a segment; it goes before the segment, which names it."""
        while len(writer.ready) > 1:  # the first one is the segment's own
            content, revision = writer.ready.pop(1), draft.upto.revision
            header = self._header(draft)._replace(after=revision, part=len(draft.parts) + 1)
            name = SegmentName(header.timeline, draft.shard, revision, revision, "")
            sealing = asyncio.to_thread(self._seal, name, header, content, draft.key)
            draft.parts.append(await sealing)

    async def _store(self, draft: _Draft, writer: SegmentWriter, first_ms: int) -> None:
        """Store a segment, and move the position behind it."""
        shard, upto, key = draft.shard, draft.upto, draft.key
        entries, position = writer.entries, draft.start.position
        header = self._header(draft)._replace(parts=tuple(draft.parts), entries=entries)
        name = SegmentName(header.timeline, shard, header.after, upto.revision, "")
        digest = await asyncio.to_thread(self._seal, name, header, writer.ready[0], key)
        day = position.day if key is None or position.key == key.id else _today()
        to = Position(position.timeline, upto, digest, "" if key is None else key.id, day)
        now_ms = await self._where.moved(shard, draft.start, to)
        self._gaps.pop(shard, None)
        stats = self.stats
        stats.segments += 1
        stats.entries += entries
        stats.pending = 0
        stats.positions[shard] = upto.revision
        stats.plain_bytes += writer.bytes
        if now_ms:
            stats.segment_lag_s = max(0, now_ms - first_ms) / 1000
            stats.max_segment_lag_s = max(stats.max_segment_lag_s, stats.segment_lag_s)

    def _seal(
        self, name: SegmentName, header: SegmentHeader, content: bytes, key: DataKey | None
    ) -> str:
        repository = self._repository
        plain = header.packed() + content
        sealed = seal(ObjectKind.SEGMENT, plain, compression=repository.compression, key=key)
        full = repository.layout.segment(name._replace(digest=sealed.name))
        repository.target.put(full, sealed.data)
        self.stats.stored_bytes += len(sealed.data)
        return sealed.name

    async def _key(self, position: Position) -> DataKey | None:
        """Return the data key: one a timeline and day, the one in use if it can be had."""
        if not self._repository.keystore.provider:
            return None
        wanted = f"{position.timeline}/{_today()}"
        if wanted not in self._keys:
            keystore = self._repository.keystore
            key = None
            if position.key and position.day == _today():
                try:
                    key = await asyncio.to_thread(keystore.get, position.key)
                except SpellError as error:  # who may only write makes another one
                    logger.info("archive: %s; a new data key is made", error)
            self._keys = {wanted: key or await asyncio.to_thread(keystore.new)}
        return self._keys[wanted]


def _passes(error: LeaseLostError | StoreUnavailableError) -> bool:
    """Whether a turn can be waited for again; what came of asking for it does not matter then."""
    return isinstance(error, LeaseLostError) or error.retryable or error.may_have_happened


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"
