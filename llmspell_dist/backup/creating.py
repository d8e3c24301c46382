"""Making backups: every scope as of one moment of its shard's log, while writers go on.

1. A hold keeps the log from being trimmed, and its end is noted (B).
2. All scopes are scanned as they lie there, and stored.
3. The log's end is noted again (T), and the entries between B and T are stored behind, with those
   values that the log does not hold.

The backup is the state as of T, exactly: whoever applies the entries to what was scanned, in their
order, arrives there whatever each key looked like when it was scanned. An incremental backup is the
third step alone, from where another backup ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Final

from llmspell_dist.backup.archive.position import PositionSteps
from llmspell_dist.backup.errors import (
    BackupDivergedError,
    BackupError,
    BackupNotFoundError,
    BaseMissingError,
)
from llmspell_dist.backup.manifest import BackupType, Manifest, ShardCut, Stats
from llmspell_dist.backup.progress import Phase, Tracker
from llmspell_dist.backup.repository import Stored, new_backup_id
from llmspell_dist.backup.scanning import Scanner
from llmspell_dist.backup.sections import SectionReader
from llmspell_dist.backup.segments import MOST_OPEN, LogReader, SegmentBuilder
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.uploading import Uploads
from llmspell_dist.backup.waiting import clearing_up, to_the_end
from llmspell_dist.backup.writing import ObjectWriter
from llmspell_dist.log import LogSteps
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["Creator", "Wish"]

logger = logging.getLogger("llmspell_dist.backup")

ROUNDS: Final = 20
"""How often T is moved on for the sake of keys that are open; each time less is to be read."""
_BEGINNING: Final = Revision(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a backup is to be."""

    selection: Selection = field(default_factory=Selection)
    sections: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    importance: str = "standard"
    reason: str = "manual"


@dataclass(slots=True)
class _Shard:
    """One shard while it is backed up."""

    name: str
    begin: Revision | None
    begin_operation: bytes
    at: Revision | None = None
    operation: bytes = b""
    scanner: Scanner | None = None


class Creator:
    """Makes one backup."""

    def __init__(
        self, driver: AsyncDriver, repository: Repository, wish: Wish, tracker: Tracker
    ) -> None:
        self.backup_id = new_backup_id()
        self._driver = driver
        self._repository = repository
        self._wish = wish
        self._tracker = tracker
        self._log = LogSteps(driver.core)
        self._hold = f"backup:{self.backup_id}"
        self._started = datetime.now(UTC)
        self._clock = monotonic()
        self._stored = Stored(None)
        self._upto: Revision | None = None
        self._inexact: list[tuple[str, str, Revision]] = []
        self._scopes = self._records = self._entries = self._bytes = 0

    async def full(self, known: Manifest | None = None) -> Manifest:
        """Make a full backup; objects of `known` are not stored again."""
        return await self._run(BackupType.FULL, known, None)

    async def following(
        self,
        backup_type: BackupType,
        parent: Manifest,
        base: str,
        *,
        upto: Revision | None = None,
    ) -> Manifest:
        """Make a backup of what was done since `parent`, until now or up to a revision."""
        self._upto = upto
        return await self._run(backup_type, None, (parent, base))

    async def _run(
        self,
        backup_type: BackupType,
        known: Manifest | None,
        chain: tuple[Manifest, str] | None,
    ) -> Manifest:
        repository = self._repository
        await asyncio.to_thread(repository.check_plaintext)
        note = {"started": self._started.isoformat(), "type": backup_type.value}
        try:
            await self._announce(note)
            return await self._noted(backup_type, known, chain)
        except BaseException:
            # What it stored is left to `gc`; nobody is to wait for it.
            await asyncio.shield(asyncio.to_thread(repository.forget_started, self.backup_id))
            raise

    async def _announce(self, note: dict[str, str]) -> None:
        """Leave a note and a new data key, beside each other: a small backup is mostly waiting."""
        repository = self._repository
        noted = asyncio.create_task(asyncio.to_thread(repository.started, self.backup_id, note))
        try:
            self._stored = await asyncio.to_thread(repository.begin)
        finally:
            await noted

    async def _noted(
        self,
        backup_type: BackupType,
        known: Manifest | None,
        chain: tuple[Manifest, str] | None,
    ) -> Manifest:
        if known is not None:
            await asyncio.to_thread(self._learn, known)
        uploads = Uploads(self._repository, self._stored)
        try:
            await self._driver.run(self._log.hold(self._hold, None))
            shards = [await self._begin(name) for name in self._driver.core.shards()]
            if chain is None:
                await self._scan(shards, uploads)
            else:
                await self._go_on_from(shards, chain[0])
            self._tracker.update(Phase.CATCHING_UP)
            for shard in shards:
                await self._catch_up(shard, uploads)
            await self._copy_sections(uploads)
            return await self._seal(backup_type, shards, uploads, chain)
        finally:
            await uploads.abandon()
            await clearing_up(self._hold, self._driver.run(self._log.release(self._hold)))

    def _learn(self, known: Manifest) -> None:
        """Note what the backup before has stored, if it may be used again.

        Objects are as secret and as authentic as the backup that wrote them: an encrypted one uses
        those of encrypted ones that who has the key has written. One that cannot be read is no
        reason to make no new one.
        """
        repository, encrypted = self._repository, self._stored.key is not None
        try:
            repository.authenticate(known)
            digests = repository.index(known).get("digests", {})
        except BackupError as error:
            logger.info("objects of backup %s are stored again: %s", known.backup_id, error)
            return
        for ref in known.objects_of("records"):
            if ref.digest in digests and bool(ref.key) is encrypted:
                self._stored.known[digests[ref.digest]] = ref

    # --- the steps

    async def _begin(self, name: str) -> _Shard:
        last, operation = await LogReader(self._driver, name).last()
        return _Shard(name, last, operation)

    async def _go_on_from(self, shards: list[_Shard], parent: Manifest) -> None:
        """Begin where another backup ended; the log must still have it."""
        for shard in shards:
            # What is read may be more than another process has: only the same one may answer.
            shard.scanner = Scanner(self._driver, shard.name, ObjectWriter(), self._wish.selection)
            await shard.scanner.check()
            cut = parent.cut(shard.name)
            if cut is None or shard.begin is None:
                reason = f"it has no shard {shard.name}" if cut is None else "the log is empty"
                if cut is not None and not cut.at:
                    continue
                raise BaseMissingError(parent.backup_id, reason)
            if not cut.at:
                if not await LogReader(self._driver, shard.name).is_whole():
                    raise BaseMissingError(parent.backup_id, "the log no longer reaches back to it")
                shard.begin, shard.begin_operation = None, b""
                continue
            reader = LogReader(self._driver, shard.name)
            there, operation = await reader.entry(cut.revision or _BEGINNING)
            if there is None:
                first, _ = await reader.first()
                if first is not None and cut.revision is not None and first < cut.revision:
                    raise BackupDivergedError(
                        shard.name, None, "the last entry that the backup has is not in the log"
                    )
                raise BaseMissingError(parent.backup_id, "the log no longer reaches back to it")
            if operation.hex() != cut.operation:
                raise BackupDivergedError(
                    shard.name, None, "the last entry that the backup has is another one now"
                )
            shard.begin, shard.begin_operation = there, operation

    async def _scan(self, shards: list[_Shard], uploads: Uploads) -> None:
        self._tracker.update(Phase.SCANNING)
        writer = ObjectWriter()
        for shard in shards:
            scanner = Scanner(self._driver, shard.name, writer, self._wish.selection)
            shard.scanner = scanner
            scopes = self._scopes
            async for _ in scanner.run():
                if writer.ready:
                    await uploads.take(writer, "records", shard.name)
                self._tracker.update(
                    bytes=writer.bytes, records=writer.records, scopes=scopes + scanner.scopes
                )
            writer.cut()
            await uploads.take(writer, "records", shard.name)
            self._scopes += scanner.scopes
        self._records, self._bytes = writer.records, writer.bytes

    async def _catch_up(self, shard: _Shard, uploads: Uploads) -> None:
        """Store the entries since the shard's beginning, up to a moment that is fixed here."""
        reader, writer = LogReader(self._driver, shard.name), ObjectWriter()
        builder = SegmentBuilder(self._driver, shard.name, writer, self._wish.selection)
        at = shard.begin
        for left in reversed(range(ROUNDS)):
            last, operation = await reader.last(self._upto)
            if last is not None and (at is None or last > at):
                async for page in reader.pages(at, last):
                    builder.add(page)
                    if builder.open > MOST_OPEN:
                        async for _ in builder.attach(page[-1][0]):
                            await uploads.take(writer, "segment", shard.name)
                    await uploads.take(writer, "segment", shard.name)
                at = last
            shard.at, shard.operation = last, operation
            if not builder.open or last is None:
                break
            async for _ in builder.attach(last):
                await uploads.take(writer, "segment", shard.name)
            if not builder.open or not left:
                break
        builder.give_up()
        writer.cut()
        await uploads.take(writer, "segment", shard.name)
        await self._check(shard, reader)
        self._inexact += builder.inexact
        self._entries += builder.entries
        self._bytes += writer.bytes

    async def _copy_sections(self, uploads: Uploads) -> None:
        for section in self._wish.sections:
            writer = ObjectWriter()
            async for _ in SectionReader(self._driver, writer).read(section):
                await uploads.take(writer, "extra", section)
            writer.cut()
            await uploads.take(writer, "extra", section)

    async def _check(self, shard: _Shard, reader: LogReader) -> None:
        """Make sure that the log is the one that was there at the beginning."""
        if shard.scanner is not None:
            # What was read may be more than another process has, and its log would not say so.
            await shard.scanner.check()
        hold = b"hold:" + self._hold.encode()
        request = pack(b"HEXISTS", self._driver.core.keyspace.ctl(shard.name), hold)
        if not await self._driver.execute(Command(request, "HEXISTS")):
            reason = "the log reached its cap while the backup ran: raise Retention.cap_entries"
            raise BaseMissingError(self.backup_id, reason)
        if shard.begin is not None:
            there, operation = await reader.entry(shard.begin)
            if there is None or operation != shard.begin_operation:
                raise BackupDivergedError(
                    shard.name, None, "the entry that it began with is gone or another one"
                )

    async def _seal(
        self,
        backup_type: BackupType,
        shards: Iterable[_Shard],
        uploads: Uploads,
        chain: tuple[Manifest, str] | None,
    ) -> Manifest:
        self._tracker.update(Phase.SEALING)
        await uploads.finish()
        repository, wish, stored = self._repository, self._wish, self._stored
        index = repository.pack_index(
            {
                "digests": stored.digests,
                "scopes": stored.marks,
                "selection": wish.selection.stored,
                "inexact": [(scope, key, str(at)) for scope, key, at in self._inexact],
            }
        )
        await uploads.put("index", index, "")
        refs = await uploads.finish()
        await asyncio.to_thread(repository.check_reused, stored)
        if chain is not None:
            await asyncio.to_thread(self._check_parent, chain[0].backup_id)
        info = self._driver.lanes.info
        manifest = Manifest(
            backup_id=self.backup_id,
            type=backup_type,
            namespace=repository.namespace,
            started=self._started.isoformat(),
            created=datetime.now(UTC).isoformat(),
            shards=tuple(
                ShardCut(
                    shard.name,
                    "" if shard.begin is None else str(shard.begin),
                    "" if shard.at is None else str(shard.at),
                    shard.operation.hex(),
                )
                for shard in shards
            ),
            objects=tuple(refs),
            parent="" if chain is None else chain[0].backup_id,
            base=self.backup_id if chain is None else chain[1],
            timeline=await self._timeline(),
            filtered=not wish.selection.everything,
            sections=wish.sections,
            tags=dict(wish.tags),
            importance=wish.importance,
            reason=wish.reason,
            compression=str(repository.compression),
            server="" if info is None else f"{info.version} {info.run_id}",
            writer=_writer(),
            stats=Stats(
                self._scopes,
                self._records,
                self._entries,
                self._bytes,
                stored.stored_bytes,
                sum(ref.size for ref in stored.reused),
                round(monotonic() - self._clock, 3),
                len(self._inexact),
            ),
        )
        # Else it might come to be when somebody has pruned already what it names.
        await to_the_end(asyncio.to_thread(repository.publish, manifest, stored.key))
        await asyncio.to_thread(repository.forget_started, self.backup_id)
        self._tracker.update(Phase.COMPLETED, bytes=self._bytes)
        return manifest

    def _check_parent(self, backup_id: str) -> None:
        """Make sure that the parent is still there: a child alone would list and not restore."""
        try:
            self._repository.manifest(backup_id)
        except BackupNotFoundError:
            raise BaseMissingError(backup_id, "it was pruned meanwhile") from None

    async def _timeline(self) -> str:
        """Return the timeline of the archive that goes on, if its last entry is in the log."""
        steps = PositionSteps(self._driver.core)
        position = (await self._driver.run(steps.look("0"))).position
        if position is None:
            return ""
        (there,) = await self._driver.run(steps.present("0", [position.place]))
        return position.timeline if there == position.place else ""


def _writer() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return f"llmspell_dist {version('llmspell-dist')}"
    except PackageNotFoundError:
        return "llmspell_dist"
