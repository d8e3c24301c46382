"""Objects read in order to verify them: what is wrong becomes a reason, never an exception."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeVar

from llmspell_dist.backup.container import ObjectKind, check, plain_digest, unseal
from llmspell_dist.backup.contents import count_records
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupError,
    BackupFormatError,
    BackupKeyError,
    ObjectMissingError,
)
from llmspell_dist.backup.findings import Level, VerifyReport
from llmspell_dist.backup.progress import Tracker
from llmspell_dist.backup.repository import KINDS
from llmspell_dist.errors import CorruptRecordError, SpellError

if TYPE_CHECKING:
    from llmspell_dist.backup.manifest import ObjectRef
    from llmspell_dist.backup.repository import Repository

__all__ = ["THREADS", "ObjectReader", "ReadObject", "ahead", "said"]

THREADS: Final = 4
"""Objects that are read at once."""
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(slots=True)
class ReadObject:
    """What was found out about an object."""

    reason: str = ""
    """What is wrong with it; empty: nothing."""
    size: int = 0
    """Of its content, as the next three, once it was decoded."""
    digest: str = ""
    records: int = 0
    plain: bytes = b""
    """The content itself, of a segment only."""


class ObjectReader:
    """Reads objects at one level; may be called by several threads at once."""

    def __init__(
        self,
        repository: Repository,
        report: VerifyReport,
        tracker: Tracker,
    ) -> None:
        self._repository = repository
        self._report = report
        self._tracker = tracker
        self._full = report.level is Level.FULL
        self._known: dict[str, ReadObject] = {}
        self._lock = Lock()

    def ref(self, ref: ObjectRef) -> ReadObject:
        """Read an object of a backup, unless that was done for another backup."""
        known = self._known.get(ref.digest)
        if known is not None:
            return known
        name = self._repository.layout.object(ref.digest)
        found = self.read(name, ref.digest, KINDS[ref.kind])
        if not found.reason and ref.kind == "records" and self._full:
            try:
                found.records = count_records(found.plain, name)
            except (SpellError, UnicodeDecodeError) as error:
                found.reason = said(error, name)[1]
        if ref.kind == "segment" and not found.reason:
            return found  # its content is needed, and must not stay in memory
        found.plain = b""
        self._known[ref.digest] = found
        return found

    def read(self, name: str, digest: str, kind: ObjectKind) -> ReadObject:
        """Read an object."""
        found = ReadObject()
        try:
            data = self._repository.target.get(name)
            with self._lock:
                self._report.read += 1
                self._report.bytes += len(data)
                self._tracker.update(bytes=self._report.bytes)
            if self._full:
                keys = self._repository.keystore.get
                found.plain = unseal(data, name=name, digest=digest, kind=kind, keys=keys)
                found.digest, found.size = plain_digest(found.plain), len(found.plain)
            else:
                check(data, name=name, digest=digest, kind=kind)
        except ObjectMissingError:
            found.reason = "it is not there"
        except BackupError as error:
            found.reason = said(error, name)[1]
        return found


def said(error: Exception, name: str) -> tuple[str, str]:
    """Return which object an error is about, and what is wrong with it."""
    if isinstance(error, BackupDamagedError):
        return error.name or name, error.reason
    if isinstance(error, BackupKeyError):
        return error.name or name, f"key {error.key}: {error.reason}"
    if isinstance(error, (BackupFormatError, CorruptRecordError)):
        return name, str(error)
    return name, f"it could not be read: {error}"


def ahead(
    pool: ThreadPoolExecutor, todo: Iterable[_T], work: Callable[[_T], _R]
) -> Iterator[tuple[_T, _R]]:
    """Yield what work gives for each, in order; a few are on their way."""
    waiting: deque[tuple[_T, Future[_R]]] = deque()
    for one in todo:
        waiting.append((one, pool.submit(work, one)))
        if len(waiting) > THREADS:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()
