"""The messages that a commit publishes on its scope's channel, read.

First the bell: 20 bytes, the scope's new revision and the one before. If anybody heard it, what the
commits did follows (version 1)::

    0   1  version
    1  10  the scope's new revision
    11 10  the scope's revision before, zeros: none
    21     entries, oldest first: revision (10); then with their lengths (4) before them the frames
           of this scope, the metadata and the operation id, as the log has them

Without entries it was too much for a message, and the log has it. ``lua_scripts/lib/bell.lua``
writes this.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from llmspell_dist.changes import LogEntry, unpack_parts
from llmspell_dist.revision import PACKED_BYTES, Revision

__all__ = ["BELL_BYTES", "Told", "read_told"]

BELL_BYTES: Final = 2 * PACKED_BYTES
VERSION: Final = 1
_HEAD: Final = 1 + 2 * PACKED_BYTES


class Told(NamedTuple):
    """What the commits of a group did to one scope."""

    revision: Revision
    previous: Revision | None
    entries: tuple[LogEntry, ...]
    """Oldest first; none if they were too much for a message."""
    size: int
    """Bytes of the message."""


def read_told(message: bytes) -> Told | None:
    """Read what came behind a bell; None if it is of a version that this release does not know."""
    if message[:1] != bytes((VERSION,)) or len(message) < _HEAD:
        return None
    revision = Revision.unpack(message[1:11])
    if revision is None:
        return None
    entries = []
    at = _HEAD
    while at < len(message):
        of = Revision.unpack(message[at : at + PACKED_BYTES])
        at += PACKED_BYTES
        parts = []
        for _ in range(3):
            end = at + 4 + int.from_bytes(message[at : at + 4], "big")
            parts.append(message[at + 4 : end])
            at = end
        if at > len(message) or of is None:
            return None
        entries.append(unpack_parts(of, *parts))
    return Told(revision, Revision.unpack(message[11:21]), tuple(entries), len(message))
