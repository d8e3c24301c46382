"""Who may still need an object that no manifest names: a backup that runs, a segment of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from llmspell_dist.backup.container import read_header
from llmspell_dist.backup.drills import keys_of_drills
from llmspell_dist.backup.errors import BackupInProgressError, ObjectMissingError

if TYPE_CHECKING:
    from llmspell_dist.backup.manifest import Manifest
    from llmspell_dist.backup.repository import Repository
    from llmspell_dist.backup.targets.base import ObjectInfo

__all__ = ["BATCH", "Claims", "Notes", "batches", "keys_in_use", "used_by"]

BATCH: Final = 500
"""Objects that are removed by one call, between two looks at who runs."""
LONGEST: Final = timedelta(hours=24)
"""No backup runs for longer."""
MOST_SEGMENTS: Final = 20_000
_HEADER: Final = 96
_THREADS: Final = 8


class Notes(NamedTuple):
    """The notes that backups leave when they begin."""

    running: list[str]
    """Ids of backups that may still run."""
    stale: list[ObjectInfo]
    """Notes of backups that ended, or that were killed."""


class Claims:
    """Tells which backups may be running, and stops whoever must not go on.

    A backup puts its note before it reads a manifest, and may use whatever that names. So the order
    matters to whoever removes: first manifests, then look at the notes, then read the manifests
    that are there, then remove what none of them names. A backup whose note comes later only uses
    what the manifests name that were read.
    """

    def __init__(
        self,
        repository: Repository,
        now: Callable[[], datetime],
        *,
        holding: Callable[[], None],
        running: Callable[[str], bool],
    ) -> None:
        self._repository = repository
        self._now = now
        self.holding = holding
        """Raises if this process is no longer the one that removes."""
        self._running = running

    def notes(self) -> Notes:
        """Read the notes."""
        layout = self._repository.layout
        started: dict[str, ObjectInfo] = {}
        done: set[str] = set()
        for info in self._repository.target.list(layout.backups):
            read = layout.read_backup(info.name)
            if read is not None and read[1] == "started.json":
                started[read[0]] = info
            elif read is not None and read[1] == "manifest.json":
                done.add(read[0])
        limit = self._now() - LONGEST
        found = Notes([], [])
        for backup_id, info in started.items():
            if backup_id not in done and info.modified > limit and self._running(backup_id):
                found.running.append(backup_id)
            else:
                found.stale.append(info)
        return found

    def check(self) -> None:
        """Raise if a backup may be running, or if this process must no longer remove anything."""
        self.holding()
        running = self.notes().running
        if running:
            raise BackupInProgressError("a backup", running[0])

    def remove(self, names: Sequence[str]) -> Iterator[int]:
        """Remove objects that no manifest names, and yield how many are gone so far.

        A backup may begin at any moment and store one of them anew, so each batch looks again.
        """
        done = 0
        for batch in batches(names, BATCH):
            self.check()
            self._repository.target.delete(batch)
            done += len(batch)
            yield done


def batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield names a few at a time."""
    found = iter(names)
    while batch := list(islice(found, size)):
        yield batch


def used_by(manifests: Iterable[Manifest]) -> tuple[set[str], set[str]]:
    """Return the digests of the objects that manifests name, and the ids of their data keys."""
    digests: set[str] = set()
    keys: set[str] = set()
    for manifest in manifests:
        for ref in manifest.objects:
            digests.add(ref.digest)
            keys.add(ref.key)
    return digests, keys - {""}


def keys_in_use(repository: Repository, wanted: set[str], segments: Sequence[str]) -> set[str]:
    """Return which of some data keys segments of the archive and results of drills need.

    Of segments only the headers tell. With very many segments all keys count as used: a key that
    stays is of no harm, one that is missing would be.
    """
    if not wanted or len(segments) > MOST_SEGMENTS:
        return set(wanted)

    def key_of(name: str) -> str:
        try:
            with repository.target.open(name) as file:
                return read_header(file.read(_HEADER), name).key_id
        except ObjectMissingError:
            return ""

    found = keys_of_drills(repository) & wanted
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in batches(segments, 64):
            found.update(pool.map(key_of, batch))
            if found >= wanted:
                break
    return found & wanted
