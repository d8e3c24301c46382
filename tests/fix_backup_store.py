"""Backups that no server made: a repository filled with objects, manifests and notes by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from llmspell_dist.backup.drills import DrillReport
from llmspell_dist.backup.errors import TargetError
from llmspell_dist.backup.items import pack_entry, pack_record, pack_scope
from llmspell_dist.backup.manifest import BackupType, Manifest, ShardCut, Stats
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.targets.base import ObjectInfo, Target
from llmspell_dist.revision import NO_REVISION, Revision, to_ms
from llmspell_dist.security.errors import KeyProviderUnavailableError
from llmspell_dist.security.keyring import KeyProvider, Wrapped

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SCOPE = b"user:1"
DRILL = DrillReport(
    id="20260201T120000Z-0a1b2c3d",
    at=datetime(2026, 2, 1, 12, tzinfo=UTC),
    backup="20260131T120000Z-0a1b2c3d",
    moment=datetime(2026, 1, 31, 12, tzinfo=UTC),
    sources=("backup 20260131T120000Z-0a1b2c3d",),
    scopes=3,
    records=5,
    unchecked=0,
    mismatches=1,
    named=(),
    inexact=0,
    digest="ab" * 32,
    seconds=1.5,
)
"""What a drill proved, one that found a difference."""
_FRAME = struct.Struct(">BBBHHIH10s10s6s")


def backup_id(ago: timedelta, number: int = 0) -> str:
    """Return the id of a backup of some time ago."""
    return f"{NOW - ago:%Y%m%dT%H%M%SZ}-{number:08x}"


def record(revision: Revision) -> bytes:
    """Return the record of a small value."""
    return struct.pack(">BBBH", 1, 16, 0, 1) + revision.packed + b"\x01"


def entry(revision: Revision, before: Revision | None, key: bytes = b"k") -> bytes:
    """Return the item of a log entry that sets a key; `before`: the scope's revision before it."""
    previous = NO_REVISION if before is None else before.packed
    frame = _FRAME.pack(1, 16, 0, 1, len(key), 1, len(SCOPE), NO_REVISION, previous, b"\0" * 6)
    return pack_entry(revision.packed, b"\x01" + frame + SCOPE + key + b"\x01", b"", b"o" * 14)


def contents(number: int, salt: str = "") -> bytes:
    """Return the content of an object of records; the same for the same number and salt."""
    items = [pack_scope(SCOPE)]
    items += [pack_record(f"{salt}{number}-{n}".encode(), record(Revision(1, n))) for n in range(3)]
    return b"".join(items)


def at_ago(ago: timedelta) -> Revision:
    """Return a revision of some time ago."""
    return Revision(to_ms(NOW - ago), 0)


def make_backup(
    repository: Repository,
    ago: timedelta,
    *,
    parent: Manifest | None = None,
    known: Manifest | None = None,
    numbers: Sequence[int] = (1, 2),
    number: int = 0,
    unpublished: bool = False,
    **more: Any,
) -> Manifest:
    """Make a backup as of some time ago: objects of records, a segment, an index, a manifest.

    With a parent it is incremental and holds a segment only; objects of `known` are used again.
    """
    stored = repository.begin()
    if known is not None:
        digests = repository.index(known)["digests"]
        stored.known = {digests[ref.digest]: ref for ref in known.objects_of("records")}
    begin = at_ago(ago + timedelta(minutes=1))
    if parent is not None:
        begin = parent.shards[0].revision or begin
    at = at_ago(ago)
    refs = []
    if parent is None:
        refs = [repository.store("records", contents(one), "0", stored) for one in numbers]
    refs.append(repository.store("segment", entry(at, begin), "0", stored))
    index = {"digests": stored.digests, "selection": Selection().stored, "inexact": []}
    refs.append(repository.store("index", repository.pack_index(index), "", stored))
    made = backup_id(ago, number)
    manifest = Manifest(
        backup_id=made,
        type=BackupType.FULL if parent is None else BackupType.INCREMENTAL,
        namespace=repository.namespace,
        started=(NOW - ago).isoformat(),
        created=(NOW - ago).isoformat(),
        shards=(ShardCut("0", str(begin), str(at), "00"),),
        objects=tuple(refs),
        parent="" if parent is None else parent.backup_id,
        base=made if parent is None else parent.base,
        stats=Stats(records=3 * len(numbers) if parent is None else 0, entries=1),
        **more,
    )
    if not unpublished:
        repository.publish(manifest, stored.key)
    return manifest


class Aged:
    """A target whose objects are as old as one says; otherwise the one that it wraps."""

    def __init__(self, inner: Target, ago: timedelta = 30 * DAY) -> None:
        self.inner = inner
        self.ago = ago
        self.young: set[str] = set()
        """Names, or the first part of them, of what was put just now."""

    @property
    def label(self) -> str:
        return self.inner.label

    def _aged(self, info: ObjectInfo) -> ObjectInfo:
        young = any(info.name.startswith(one) for one in self.young)
        return info._replace(modified=NOW if young else NOW - self.ago)

    def put(self, name: str, data: bytes | BinaryIO, *, only_new: bool = False) -> bool:
        return self.inner.put(name, data, only_new=only_new)

    def get(self, name: str) -> bytes:
        return self.inner.get(name)

    def open(self, name: str) -> BinaryIO:
        return self.inner.open(name)

    def head(self, name: str) -> ObjectInfo | None:
        found = self.inner.head(name)
        return None if found is None else self._aged(found)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        return map(self._aged, self.inner.list(prefix, after=after))

    def delete(self, names: Sequence[str]) -> None:
        self.inner.delete(names)

    def close(self) -> None:
        self.inner.close()


class Interrupted(Aged):
    """A target that fails for good from the nth call on; a batch of deletions does a part of it."""

    def __init__(self, inner: Target, calls: int) -> None:
        super().__init__(inner)
        self.left = calls
        self.failed = False

    def _count(self, doing: str, name: str) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed = True
            raise TargetError(self.label, name, doing, "interrupted")

    def put(self, name: str, data: bytes | BinaryIO, *, only_new: bool = False) -> bool:
        self._count("put", name)
        return super().put(name, data, only_new=only_new)

    def get(self, name: str) -> bytes:
        self._count("get", name)
        return super().get(name)

    def open(self, name: str) -> BinaryIO:
        self._count("get", name)
        return super().open(name)

    def head(self, name: str) -> ObjectInfo | None:
        self._count("head", name)
        return super().head(name)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        self._count("list", prefix)
        return super().list(prefix, after=after)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:  # what S3 does with a batch is done one by one too
            self._count("delete", name)
            super().delete([name])


class Unread(Aged):
    """A target of which some objects cannot be read just now: those that `unread` says."""

    def __init__(self, inner: Target, unread: Callable[[str], bool]) -> None:
        super().__init__(inner)
        self.unread = unread

    def _fail(self, name: str) -> None:
        if self.unread(name):
            raise TargetError(self.label, name, "get", "500 InternalError", 4)

    def get(self, name: str) -> bytes:
        self._fail(name)
        return super().get(name)

    def open(self, name: str) -> BinaryIO:
        self._fail(name)
        return super().open(name)


class AwayKeys:
    """A provider that cannot be asked, as KMS that throttles, while `away` is set.

    `wraps`: whether it wraps all the same.
    """

    def __init__(self, inner: KeyProvider, *, wraps: bool = False) -> None:
        self.inner = inner
        self.name = inner.name
        self.wraps = wraps
        self.away = True

    def _ask(self, version: str) -> None:
        if self.away:
            raise KeyProviderUnavailableError(self.name, version, "cannot be asked: throttled")

    def current(self) -> str:
        self._ask("")
        return self.inner.current()

    def wrap(self, plaintext_key: bytes, *, context: bytes) -> Wrapped:
        if not self.wraps:
            self._ask("")
        return self.inner.wrap(plaintext_key, context=context)

    def unwrap(self, wrapped: Wrapped, *, context: bytes) -> bytes:
        self._ask(wrapped.version)
        return self.inner.unwrap(wrapped, context=context)


def names_in(target: Target, prefix: str = "") -> list[str]:
    """Return the names of all objects."""
    return [info.name for info in target.list(prefix)]
