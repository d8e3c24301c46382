"""What tests of the archive share: shippers, and the log to compare what they stored with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fix_s3 import Place
from fix_state import Raw, Store

from llmspell_dist.backup.archive import SegmentReader, Shipper
from llmspell_dist.backup.items import Logged, Record, ScopeStart, Unresolved
from llmspell_dist.backup.repository import Repository
from llmspell_dist.revision import Revision

__all__ = ["Archive", "archive_of"]

Entry = tuple[Revision, bytes, bytes, bytes]


class Archive:
    """The archive of one namespace in one place, and the log that it is of."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.reader = SegmentReader(repository)
        self.kept: Any = None
        """The backups in the same place, if a test makes some."""

    @property
    def timeline(self) -> str:
        """The timeline that goes on now."""
        return self.reader.timelines()[-1].id

    def shipper(self, spell: Any, **options: Any) -> Shipper:
        """Return a shipper of a client."""
        return Shipper(spell.state._driver, self.repository, **options)

    def items(self, after: Revision | None, upto: Revision, timeline: str = "") -> list[Any]:
        """Return what the archive has between two revisions."""
        return list(self.reader.items(timeline or self.timeline, "0", after, upto))

    def entries(self, after: Revision | None, upto: Revision, timeline: str = "") -> list[Entry]:
        """Return the entries among it."""
        return [
            (Revision.unpack(item.revision) or Revision(0, 0), *item[1:])
            for item in self.items(after, upto, timeline)
            if isinstance(item, Logged)
        ]

    def attached(
        self, after: Revision | None, upto: Revision, timeline: str = ""
    ) -> list[tuple[str, str, Any]]:
        """Return scope, key and record of what is attached; None: it could not be had."""
        found: list[tuple[str, str, Any]] = []
        scope = ""
        for item in self.items(after, upto, timeline):
            if isinstance(item, ScopeStart):
                scope = item.text.decode()
            elif isinstance(item, Record):
                found.append((scope, item.key.decode(), item.raw))
            elif isinstance(item, Unresolved):
                found.append((scope, item.key.decode(), None))
        return found

    def ranges(self, timeline: str = "") -> list[tuple[Revision, Revision]]:
        """Return what is covered without a gap."""
        found = self.reader.covered(timeline or self.timeline, "0")
        return [(one.after, one.upto) for one in found]

    def problems(self) -> list[Any]:
        """Return what is wrong with any segment."""
        return [
            problem
            for timeline in self.reader.timelines()
            for problem in self.reader.problems(timeline.id, "0")
        ]


def logged(raw: Raw, store: Store, after: str = "-") -> list[Entry]:
    """Return the entries of the log."""
    return [
        (Revision.parse(entry), fields[1], fields[3], fields[5])
        for entry, fields in raw("XRANGE", store.space.log("0"), after, "+")
    ]


def archive_of(place: Place, namespace: str, **options: Any) -> Archive:
    """Return the archive of a namespace in a place."""
    return Archive(Repository(place.open(), namespace, **options))


@pytest.fixture
def archives(place: Place, namespace: str) -> Callable[..., Archive]:
    """A function that opens the archive of the test's namespace."""

    def archive(**options: Any) -> Archive:
        return archive_of(place, namespace, **options)

    return archive


@pytest.fixture
def archive(archives: Callable[..., Archive]) -> Archive:
    """The archive of the test's namespace, not encrypted."""
    return archives()
