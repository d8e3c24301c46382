"""Verifying backups: everything that is wrong is found and named, nothing is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from llmspell_dist.backup.archive.header import SegmentHeader
from llmspell_dist.backup.archive.timelines import Timeline
from llmspell_dist.backup.container import ObjectKind
from llmspell_dist.backup.contents import LogCheck
from llmspell_dist.backup.errors import BackupError, BackupNotFoundError
from llmspell_dist.backup.findings import Finding, Level, VerifyReport
from llmspell_dist.backup.items import unpack_items
from llmspell_dist.backup.progress import Phase, Tracker
from llmspell_dist.backup.promises import Promises, look
from llmspell_dist.backup.reading import THREADS, ObjectReader, ReadObject, ahead, said
from llmspell_dist.backup.repository import KINDS
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.backup.manifest import Manifest, ObjectRef
    from llmspell_dist.backup.names import SegmentName
    from llmspell_dist.backup.repository import Repository

__all__ = ["Verifier", "follows"]


def follows(before: SegmentName, after: SegmentName) -> bool:
    """Whether nothing lies between two segments: one begins where the other ends, or earlier."""
    return after.first <= before.last


@dataclass(slots=True)
class _Run:
    """One verification."""

    report: VerifyReport
    reader: ObjectReader
    random: Random
    """The same objects are drawn for the same seed."""
    there: dict[str, int] | None = None
    """Sizes of all objects by name; None: each is asked for."""
    wrapped: set[str] = field(default_factory=set)
    """Ids of the data keys that are there."""
    unread: set[str] = field(default_factory=set)
    """Ids of the backups whose manifest is there and was not read."""

    def found(self, backup_id: str, name: str, reason: str) -> None:
        one = Finding(backup_id, name, reason)
        if one not in self.report.findings:
            self.report.findings.append(one)


class Verifier:
    """Verifies the backups of a repository; all methods block, some objects are read at once.

    `tracker` is told how far it is, by the threads that read.
    """

    def __init__(self, repository: Repository, *, tracker: Tracker | None = None) -> None:
        self._repository = repository
        self._tracker = Tracker(None) if tracker is None else tracker

    def verify(
        self,
        backup_id: str | None = None,
        *,
        level: Level | str = Level.HASHES,
        sample: float = 1.0,
        seed: int = 0,
    ) -> VerifyReport:
        """Verify one backup with all that it needs, or all of them and the archive.

        `sample`: which part of the objects is read, drawn with `seed`; indexes always are. It goes
        on after a finding; that nothing is there at all is one. Raises only if the place cannot
        be listed, or the backup asked for does not exist.
        """
        try:
            level = Level(level)
        except ValueError:
            rule = f"must be one of {', '.join(Level)}"
            raise InvalidArgumentError("level", level, rule) from None
        if type(sample) not in {int, float} or not 0 < sample <= 1:
            raise InvalidArgumentError("sample", sample, "must be more than 0 and at most 1")
        report = VerifyReport(level, float(sample), seed)
        reader = ObjectReader(self._repository, report, self._tracker)
        run = _Run(report, reader, Random(seed))
        layout, target = self._repository.layout, self._repository.target
        for info in target.list(layout.keys):
            run.wrapped.add(info.name.removeprefix(layout.keys).partition("/")[0])
        manifests = self._manifests(run, backup_id)
        if backup_id is None:
            run.there = {info.name: info.size for info in target.list(layout.objects)}
        total = sum(
            {ref.digest: ref.size for one in manifests.values() for ref in one.objects}.values()
        )
        self._tracker.update(Phase.VALIDATING_BACKUPS, total_bytes=int(total * sample))
        with ThreadPoolExecutor(THREADS) as pool:
            for manifest in manifests.values():
                report.backups.append(manifest.backup_id)
                self._chain(run, manifest, manifests)
                self._backup(run, manifest, pool)
            if backup_id is None:
                self._archive(run, pool)
        if not (report.backups or report.segments or report.findings):
            run.found("", "", f"there is no backup of {self._repository.namespace}")
        self._tracker.update(Phase.COMPLETED)
        return report

    # --- structure

    def _manifests(self, run: _Run, backup_id: str | None) -> dict[str, Manifest]:
        """Read the manifests, the oldest first; of one backup those that it needs too."""
        found: dict[str, Manifest] = {}
        todo = self._repository.backup_ids() if backup_id is None else [backup_id]
        while todo:
            at = todo.pop(0)
            try:
                found[at] = self._repository.manifest(at)
            except BackupNotFoundError:
                if at == backup_id:
                    raise
            except BackupError as error:
                run.unread.add(at)
                run.found(at, *said(error, self._repository.layout.manifest(at)))
            else:
                parent = found[at].parent
                if backup_id is not None and parent and parent not in found:
                    todo.append(parent)
        return dict(sorted(found.items()))

    def _chain(self, run: _Run, manifest: Manifest, manifests: dict[str, Manifest]) -> None:
        """Look whether a backup begins where its parent ends."""
        name = self._repository.layout.manifest(manifest.backup_id)
        for needed in {manifest.parent, manifest.base} - {"", manifest.backup_id}:
            if needed not in manifests and needed not in run.unread:
                run.found(manifest.backup_id, name, f"backup {needed}, which it needs, is missing")
        parent = manifests.get(manifest.parent)
        for cut in manifest.shards if parent is not None else ():
            before = parent.cut(cut.shard) if parent is not None else None
            end = None if before is None else before.revision
            begin = cut.begin_revision
            if begin is not None and (end is None or begin > end):
                gap = f"the log of shard {cut.shard} from {end or 'its beginning'} to {begin}"
                run.found(manifest.backup_id, name, f"{gap} is missing")

    def _backup(self, run: _Run, manifest: Manifest, pool: ThreadPoolExecutor) -> None:
        backup_id, layout = manifest.backup_id, self._repository.layout
        name = layout.manifest(backup_id)
        for key in sorted({ref.key for ref in manifest.objects} - {""} - run.wrapped):
            run.found(backup_id, name, f"data key {key} is not there")
        if len(manifest.objects_of("index")) != 1:
            run.found(backup_id, name, "it has no index")
        full, sampled = run.report.level is Level.FULL, run.report.sample < 1
        index = self._index(run, manifest) if full else None
        promises = Promises(manifest, index, partial(run.found, backup_id), sampled=sampled)
        run.report.objects += len(manifest.objects)
        todo = []
        for ref in manifest.objects:
            if self._is_there(run, manifest, ref):
                todo.append(ref)
            else:
                promises.skip(ref)
        if run.report.level is Level.STRUCTURE:
            return
        todo = [ref for ref in todo if ref.kind == "index" or self._drawn(run)]
        for ref, one in ahead(pool, todo, run.reader.ref):
            if one.reason:
                run.found(backup_id, layout.object(ref.digest), one.reason)
                promises.skip(ref)
            elif full:
                promises.take(ref, one, layout.object(ref.digest))
        if full:
            promises.finish(name)

    @staticmethod
    def _drawn(run: _Run) -> bool:
        return run.report.sample >= 1 or run.random.random() < run.report.sample

    def _is_there(self, run: _Run, manifest: Manifest, ref: ObjectRef) -> bool:
        name = self._repository.layout.object(ref.digest)
        if ref.kind not in KINDS:
            run.found(manifest.backup_id, name, f"its kind is {ref.kind!r}")
            return False
        try:
            if run.there is not None:
                size = run.there.get(name)
            else:
                info = self._repository.target.head(name)
                size = None if info is None else info.size
        except BackupError as error:
            run.found(manifest.backup_id, *said(error, name))
            return False
        if size is None:
            run.found(manifest.backup_id, name, "it is not there")
        elif size != ref.size:
            run.found(manifest.backup_id, name, f"it has {size} bytes, must have {ref.size}")
        # One of the wrong size is not read: it was found already.
        return size == ref.size

    # --- objects

    def _index(self, run: _Run, manifest: Manifest) -> dict[str, Any] | None:
        name = self._repository.layout.manifest(manifest.backup_id)
        try:
            self._repository.authenticate(manifest)
        except BackupError as error:
            run.found(manifest.backup_id, *said(error, name))
        try:
            return self._repository.index(manifest)
        except BackupError as error:
            run.found(manifest.backup_id, *said(error, name))
        except (ValueError, TypeError) as error:
            run.found(manifest.backup_id, name, f"its index cannot be read: {error}")
        return None

    # --- the archive

    def _archive(self, run: _Run, pool: ThreadPoolExecutor) -> None:
        layout, target = self._repository.layout, self._repository.target
        for info in target.list(layout.timelines):
            try:
                Timeline.unpack(target.get(info.name), info.name)
            except BackupError as error:
                run.found("", *said(error, info.name))
        segments: dict[tuple[str, str], list[tuple[SegmentName, str]]] = {}
        for info in target.list(layout.archive):
            segment = layout.read_segment(info.name)
            if segment is not None:
                place = segment.timeline, segment.shard
                segments.setdefault(place, []).append((segment, info.name))
        for found in segments.values():
            run.report.segments += len(found)
            self._segments(run, found, pool)

    def _segments(
        self, run: _Run, found: list[tuple[SegmentName, str]], pool: ThreadPoolExecutor
    ) -> None:
        """Look at the segments of a timeline's shard, which come in order."""
        before: SegmentName | None = None
        for segment, name in found:
            if before is not None and not follows(before, segment):
                gap = f"the log from {before.last} to {segment.first} is missing"
                run.found("", name, f"{gap} in timeline {segment.timeline}, shard {segment.shard}")
            if before is None or segment.last > before.last:
                before = segment
        if run.report.level is Level.STRUCTURE:
            return
        drawn = [one for one in found if self._drawn(run)]

        def read(one: tuple[SegmentName, str]) -> ReadObject:
            return run.reader.read(one[1], one[0].digest, ObjectKind.SEGMENT)

        # Two shippers may have sent overlapping ones.
        log = LogCheck(None, None, overlapping=True)
        log.whole = len(drawn) == len(found)
        there = {segment.digest for segment, _ in found}
        for (segment, name), one in ahead(pool, drawn, read):
            if one.reason:
                run.found("", name, one.reason)
                log.whole = False
            elif run.report.level is Level.FULL:
                for reason in (
                    *self._header(segment, name, one.plain, there),
                    *look(log, one.plain, name),
                ):
                    run.found("", name, reason)

    @staticmethod
    def _header(
        segment: SegmentName, name: str, plain: bytes, there: Collection[str]
    ) -> Iterator[str]:
        """Yield what is wrong with what a segment says about itself."""
        try:
            header = SegmentHeader.read(next(unpack_items(plain, name), None), name)
        except BackupError as error:
            yield said(error, name)[1]
            return
        inside = header.timeline, header.shard, header.after, header.upto.revision
        if inside != segment[:4]:
            yield "its name is not the one that it was stored under"
        for digest in header.parts:
            if digest not in there:
                yield f"{digest}, which holds more of it, is missing"
