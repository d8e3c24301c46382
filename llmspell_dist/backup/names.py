"""Every name of an object in a target is spelled here, and read back here.

========================================== =========================================================
``backups/<id>/manifest.json``             a backup; without it the backup does not exist
``backups/<id>/started.json``              a backup that runs, or did not end
``objects/<hh>/<sha256>``                  records, log and index of backups, by their hash
``keys/<key id>/<wrapping>.json``          a data key, wrapped by a key-encryption key
``archive/<timeline>/<shard>/<segment>``   the change log; segment: the revision before its first
                                           entry, that of the last, sha256
``timelines/<timeline>.json``              where a timeline of the archive branched off
``drills/<id>.json``                       what a drill proved
========================================== =========================================================

All of them lie under the name of the namespace, in which every byte of UTF-8 that is no letter of
ASCII, digit, ``-`` or ``_`` is written as ``=`` and two hex digits.
"""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Final, NamedTuple

from llmspell_dist.revision import Revision

__all__ = ["Layout", "SegmentName", "encode_name", "is_backup_id"]

_SEGMENT: Final = re.compile(
    r"(?P<timeline>[0-9a-f]{8})/(?P<shard>[0-9]{1,5})/"
    r"(?P<first>[0-9a-f]{12}\.[0-9a-f]{8})-(?P<last>[0-9a-f]{12}\.[0-9a-f]{8})-"
    r"(?P<digest>[0-9a-f]{64})",
    re.ASCII,
)
_KEPT: Final = frozenset((string.ascii_letters + string.digits + "-_").encode())
_BACKUP_ID: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", re.ASCII)


def encode_name(text: str) -> str:
    """Return a part of a name that every target takes and no other text gives."""
    plain = unicodedata.normalize("NFC", text).encode()
    return "".join(chr(byte) if byte in _KEPT else f"={byte:02X}" for byte in plain)


def is_backup_id(text: str) -> bool:
    """Whether a text can be the id of a backup, like ``20261126T140500Z-1a2b3c4d``."""
    return _BACKUP_ID.fullmatch(text) is not None


class SegmentName(NamedTuple):
    """What the name of a segment says."""

    timeline: str
    shard: str
    first: Revision
    """Its entries come after this one; the one before it ended there."""
    last: Revision
    digest: str


class Layout:
    """The names of one namespace's objects."""

    def __init__(self, namespace: str) -> None:
        self.prefix = encode_name(namespace) + "/"

    @property
    def backups(self) -> str:
        """What the names of all manifests begin with."""
        return f"{self.prefix}backups/"

    @property
    def objects(self) -> str:
        """What the names of all objects begin with."""
        return f"{self.prefix}objects/"

    @property
    def keys(self) -> str:
        """What the names of all wrapped keys begin with."""
        return f"{self.prefix}keys/"

    @property
    def archive(self) -> str:
        """What the names of all segments begin with."""
        return f"{self.prefix}archive/"

    @property
    def timelines(self) -> str:
        """What the names of all timelines begin with."""
        return f"{self.prefix}timelines/"

    @property
    def drills(self) -> str:
        """What the names of all results of drills begin with."""
        return f"{self.prefix}drills/"

    def manifest(self, backup_id: str) -> str:
        """Return the name of a backup's manifest."""
        return f"{self.backups}{backup_id}/manifest.json"

    def started(self, backup_id: str) -> str:
        """Return the name of the note that a backup has begun."""
        return f"{self.backups}{backup_id}/started.json"

    def object(self, digest: str) -> str:
        """Return the name of the object with this SHA-256, in hex."""
        return f"{self.objects}{digest[:2]}/{digest}"

    def key(self, key_id: str, wrapping: str) -> str:
        """Return the name of a data key as one key-encryption key wraps it."""
        return f"{self.keys}{key_id}/{wrapping}.json"

    def timeline(self, timeline: str) -> str:
        """Return the name of the note about a timeline."""
        return f"{self.timelines}{timeline}.json"

    def drill(self, drill_id: str) -> str:
        """Return the name of the result of a drill."""
        return f"{self.drills}{drill_id}.json"

    def segment(self, segment: SegmentName) -> str:
        """Return the name of a segment; names sort as their revisions do."""
        first, last = _sortable(segment.first), _sortable(segment.last)
        return f"{self.archive}{segment.timeline}/{segment.shard}/{first}-{last}-{segment.digest}"

    def segments(self, timeline: str, shard: str) -> str:
        """Return what the names of a timeline's segments of a shard begin with."""
        return f"{self.archive}{timeline}/{shard}/"

    def read_segment(self, name: str) -> SegmentName | None:
        """Return what the name of a segment says; None if it is none."""
        if not name.startswith(self.archive):
            return None
        found = _SEGMENT.fullmatch(name, len(self.archive))
        if found is None:
            return None
        return SegmentName(
            found["timeline"],
            found["shard"],
            _revision(found["first"]),
            _revision(found["last"]),
            found["digest"],
        )

    def read_backup(self, name: str) -> tuple[str, str] | None:
        """Return id and file of an object under `backups`; None if it is none."""
        backup_id, _, file = name.removeprefix(self.backups).partition("/")
        if not name.startswith(self.backups) or not _BACKUP_ID.fullmatch(backup_id):
            return None
        return backup_id, file


def _sortable(revision: Revision) -> str:
    return f"{revision.ms:012x}.{revision.seq:08x}"


def _revision(text: str) -> Revision:
    ms, _, seq = text.partition(".")
    return Revision(int(ms, 16), int(seq, 16))
