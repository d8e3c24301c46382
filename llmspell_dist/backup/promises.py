"""The contents of a backup, compared with what its manifest and index say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmspell_dist.backup.contents import LogCheck
from llmspell_dist.backup.errors import BackupDamagedError

if TYPE_CHECKING:
    from llmspell_dist.backup.manifest import Manifest, ObjectRef
    from llmspell_dist.backup.reading import ReadObject

__all__ = ["Promises", "look"]


class Promises:
    """What one backup promises; `found` is told what it does not keep."""

    def __init__(
        self,
        manifest: Manifest,
        index: dict[str, Any] | None,
        found: Callable[[str, str], None],
        *,
        sampled: bool,
    ) -> None:
        self._manifest = manifest
        self._index = index
        self._found = found
        self._whole = not sampled and index is not None
        """Whether everything could be read so far."""
        self._records = 0
        self._logs: dict[str, LogCheck] = {}
        for cut in manifest.shards:
            log = self._logs[cut.shard] = LogCheck(cut.begin_revision, cut.revision)
            log.whole = not manifest.filtered and not sampled

    def skip(self, ref: ObjectRef) -> None:
        """Go on behind an object that could not be read."""
        self._whole = False
        if ref.shard in self._logs:
            self._logs[ref.shard].whole = False

    def take(self, ref: ObjectRef, one: ReadObject, name: str) -> None:
        """Look at the next object."""
        if one.size != ref.plain_size:
            self._found(name, f"it holds {one.size} bytes, must hold {ref.plain_size}")
        digest = (self._index or {}).get("digests", {}).get(ref.digest)
        if digest is not None and digest != one.digest:
            self._found(name, "its content is not the one that the index names")
        self._records += one.records
        if ref.kind == "segment":
            log = self._logs.get(ref.shard)
            if log is None:
                self._found(name, f"there is no shard {ref.shard}")
                return
            for reason in look(log, one.plain, name):
                self._found(name, reason)

    def finish(self, name: str) -> None:
        """Compare the counts, if everything was read."""
        if not self._whole or self._index is None:
            return
        stats = self._manifest.stats
        counted = {
            "records": (self._records, stats.records),
            "entries of the log": (sum(one.entries for one in self._logs.values()), stats.entries),
            "inexact keys": (len(self._index.get("inexact", ())), stats.inexact),
        }
        for what, (found, promised) in counted.items():
            if found != promised:
                self._found(name, f"it has {found:,} {what}, must have {promised:,}")


def look(log: LogCheck, raw: bytes, name: str) -> Iterator[str]:
    """Yield what is wrong with the next object of a log, also if it cannot be decoded."""
    try:
        yield from log.look(raw, name)
    except BackupDamagedError as error:
        yield error.reason
